// What the browser keeps: conversations and settings in localStorage, the API key for the tab alone.
// Nothing of it is sent anywhere but to this server, as part of a request.

const CONVERSATIONS = "lit_gpt.conversations";
const SETTINGS = "lit_gpt.settings";
const THEME = "lit_gpt.theme";
const KEY = "lit_gpt.key";
const DEFAULTS = { system: "", temperature: 0.8, top_p: 0.95, top_k: "", max_tokens: "", repetition_penalty: "", seed: "", stop: "" };
const MOST_CONVERSATIONS = 200;

function read(storage, name, fallback) {
  try {
    const value = JSON.parse(storage.getItem(name));
    return value === null || typeof value !== typeof fallback ? fallback : value;
  } catch {
    return fallback;
  }
}

// Returns whether it could be kept: storage may be full, or forbidden.
function write(storage, name, value) {
  try {
    storage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

const store = {
  // [{id, title, messages: [{role, text, note?, failure?, versions?: [{text, note}], version?}], changed}], newest first
  conversations: read(localStorage, CONVERSATIONS, []).filter((each) => each && Array.isArray(each.messages)),
  settings: { ...DEFAULTS, ...read(localStorage, SETTINGS, {}) },

  add() {
    const made = { id: `${Date.now()}-${Math.random().toString(36).slice(2)}`, title: "", messages: [], changed: Date.now() };
    this.conversations.unshift(made);
    return made;
  },

  remove(id) {
    this.conversations = this.conversations.filter((each) => each.id !== id);
    this.save();
  },

  save() {
    this.conversations.sort((a, b) => b.changed - a.changed);
    this.conversations.length = Math.min(this.conversations.length, MOST_CONVERSATIONS);
    const kept = this.conversations.filter((each) => each.messages.length);
    // If the browser's storage is full, drop the oldest conversations first.
    while (!write(localStorage, CONVERSATIONS, kept) && kept.length > 1) kept.pop();
  },

  // Another tab has written: take over its list, with the conversation that is open here as it is here.
  reload(open) {
    const stored = read(localStorage, CONVERSATIONS, []).filter((each) => each && Array.isArray(each.messages));
    this.conversations = [open, ...stored.filter((each) => each.id !== open.id)].sort((a, b) => b.changed - a.changed);
  },

  saveSettings() { write(localStorage, SETTINGS, this.settings); },
  get theme() { return read(localStorage, THEME, "auto"); },
  set theme(value) { write(localStorage, THEME, value); },
  get key() { return read(sessionStorage, KEY, ""); },
  set key(value) { write(sessionStorage, KEY, value); },
};

function asMarkdown(conversation, model) {
  const names = { user: "You", assistant: model };
  const turns = conversation.messages.map((message) => `### ${names[message.role]}\n\n${message.text.trim()}\n`);
  const system = store.settings.system.trim();
  return [`# ${conversation.title}\n`, ...(system ? [`> ${system.replace(/\n/g, "\n> ")}\n`] : []), ...turns].join("\n");
}

function asJson(conversation, model) {
  const system = store.settings.system.trim();
  const messages = conversation.messages.map((message) => ({ role: message.role, content: message.text }));
  if (system) messages.unshift({ role: "system", content: system });
  return JSON.stringify({ title: conversation.title, model, settings: store.settings, messages }, null, 2) + "\n";
}

function download(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
