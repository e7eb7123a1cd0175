// What the browser keeps: conversations and settings in localStorage, the API key for the tab alone.
// Nothing of it is sent anywhere but to this server, as part of a request.
//
// A conversation is { id, title, changed, stamp, turns }, a turn { text, answers, shown }, and an answer
// { text, note?, failure?, open? }: `open` while it comes in, so that a page that is closed meanwhile leaves what it has.
// Each conversation has an entry of its own, so that two tabs do not overwrite one another's. `stamp` changes with each
// save: a tab whose conversation was saved by another tab since it was read keeps its own as a new one.

const CONVERSATION = "lit_gpt.conversation.";
const SETTINGS = "lit_gpt.settings";
const THEME = "lit_gpt.theme";
const KEY = "lit_gpt.key";
const DEFAULTS = { system: "", temperature: 0.8, top_p: 0.95, top_k: "", max_tokens: "", repetition_penalty: "", seed: "", stop: "" };
const THEMES = ["auto", "light", "dark"];
const TITLE_CHARACTERS = 60;

// A browser that blocks cookies refuses the very look at its storage.
function storageNamed(name) {
  try { return window[name]; } catch { return null; }
}
const local = storageNamed("localStorage");
const session = storageNamed("sessionStorage");

function read(storage, name) {
  try { return JSON.parse(storage.getItem(name)); } catch { return null; }
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

const isText = (value) => typeof value === "string";
const isAnswer = (value) => value && isText(value.text) && [value.note, value.failure].every((each) => each === undefined || isText(each));
const isTurn = (value) => value && isText(value.text) && Array.isArray(value.answers) && value.answers.every(isAnswer)
  && Number.isInteger(value.shown) && value.shown >= 0 && value.shown <= Math.max(0, value.answers.length - 1);
const isConversation = (value) => value && isText(value.id) && isText(value.title) && Number.isFinite(value.changed)
  && Array.isArray(value.turns) && value.turns.every(isTurn);

// The stored conversation of an entry; null: there is none, or it is not one that this page wrote.
function stored(name) {
  const value = read(local, name);
  return isConversation(value) && name === CONVERSATION + value.id ? value : null;
}

function storedConversations() {
  const names = [];
  try {
    for (let index = 0; index < local.length; index += 1) names.push(local.key(index));
  } catch { /* no storage */ }
  return names.filter((name) => name.startsWith(CONVERSATION)).map(stored).filter(Boolean);
}

function storedSettings() {
  const found = read(local, SETTINGS) || {};
  const fits = (name) => typeof found[name] === typeof DEFAULTS[name] && (isText(found[name]) || Number.isFinite(found[name]));
  return Object.fromEntries(Object.keys(DEFAULTS).map((name) => [name, fits(name) ? found[name] : DEFAULTS[name]]));
}

const newId = () => `${Date.now()}-${Math.random().toString(36).slice(2)}`;

const store = {
  conversations: storedConversations(), // newest first, as `sort` leaves them
  settings: storedSettings(),
  unsaved: new Set(), // conversations that the browser did not keep

  sort() { this.conversations.sort((a, b) => b.changed - a.changed); },

  add() {
    const made = { id: newId(), title: "", changed: Date.now(), stamp: "", turns: [] };
    this.conversations.unshift(made);
    return made;
  },

  remove(conversation) {
    this.conversations = this.conversations.filter((each) => each !== conversation);
    this.forget(conversation);
  },

  forget(conversation) {
    this.unsaved.delete(conversation);
    try { local.removeItem(CONVERSATION + conversation.id); } catch { /* no storage */ }
    Object.assign(conversation, { title: "", stamp: "" });
  },

  // Saves a conversation. Returns whether it became a new one, because another tab has saved it in between.
  save(conversation) {
    if (!conversation.turns.length) { // nothing was said in it, or all of it was removed
      if (conversation.stamp) this.forget(conversation);
      return false;
    }
    const there = stored(CONVERSATION + conversation.id);
    const copied = there !== null && there.stamp !== conversation.stamp;
    if (copied) {
      this.conversations.push(there);
      Object.assign(conversation, { id: newId(), title: `${conversation.title} (2)` });
    }
    const stamp = newId();
    if (write(local, CONVERSATION + conversation.id, { ...conversation, stamp })) {
      conversation.stamp = stamp;
      this.unsaved.delete(conversation);
    } else this.unsaved.add(conversation);
    this.sort();
    return copied;
  },

  // Another tab has saved or deleted a conversation: takes it over, unless it is in use here.
  reload(name, inUse) {
    const id = name.slice(CONVERSATION.length);
    const here = this.conversations.find((each) => each.id === id);
    if (here && inUse(here)) return;
    const there = stored(name);
    if (here && there) Object.assign(here, there);
    else if (there) this.conversations.push(there);
    else this.conversations = this.conversations.filter((each) => each !== here);
    this.sort();
  },

  saveSettings() { write(local, SETTINGS, this.settings); },
  get theme() { const found = read(local, THEME); return THEMES.includes(found) ? found : "auto"; },
  set theme(value) { write(local, THEME, value); },
  get key() { const found = read(session, KEY); return isText(found) ? found : ""; },
  set key(value) { write(session, KEY, value); },
};

const shownAnswer = (turn) => turn.answers[turn.shown] || { text: "", failure: "It has no answer yet." };

function titleOf(text) {
  const characters = [...text.trim().replace(/\s+/g, " ")];
  return characters.length > TITLE_CHARACTERS ? `${characters.slice(0, TITLE_CHARACTERS).join("")}…` : characters.join("");
}

// What was said, as messages of OpenAI's API; a turn without an answer is the user's message alone.
function messagesOf(turns) {
  return turns.flatMap((turn) => {
    const answer = shownAnswer(turn).text;
    return [{ role: "user", content: turn.text }, ...(answer ? [{ role: "assistant", content: answer }] : [])];
  });
}

function asMarkdown(conversation, model) {
  const names = { user: "You", assistant: model };
  const turns = messagesOf(conversation.turns).map(({ role, content }) => `### ${names[role]}\n\n${content.trim()}\n`);
  const system = store.settings.system.trim();
  return [`# ${conversation.title}\n`, ...(system ? [`> ${system.replace(/\n/g, "\n> ")}\n`] : []), ...turns].join("\n");
}

function asJson(conversation, model) {
  const system = store.settings.system.trim();
  const messages = messagesOf(conversation.turns);
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
