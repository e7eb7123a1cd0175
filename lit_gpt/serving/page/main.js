// The page's life: a message goes out, an answer comes in piece by piece, and the person can stop, repeat or change it.

const NARROW = matchMedia("(max-width: 48rem)");
const IDEAS = {
  chat: ["Explain attention to someone who has never seen a neural network", "Write a haiku about gradient descent",
    "What makes a good tokenizer?", "Plan a weekend in the mountains, as a table"],
  text: ["def fibonacci(n):\n", "class Stack:\n    ", "import os\n\n", "Once upon a time"],
};
const THEMES = ["auto", "light", "dark"];
const THEME_ICONS = { auto: "auto", light: "sun", dark: "moon" };
const NEAR_BOTTOM = 80;

let model = null;
let conversation = null;
let running = null; // AbortController of the answer that is coming in
let charactersPerToken = 2;
let follows = true; // the view stays with the newest line
const raw = () => model !== null && !model.chat;

// ---- what is shown ----

function drawConversations() {
  const shown = store.conversations.filter((each) => each.messages.length);
  $("no-conversations").hidden = shown.length > 0;
  $("conversations").hidden = shown.length === 0;
  $("conversations").replaceChildren(...shown.map((each) => conversationItem(each, each === conversation,
    () => { openConversation(each); if (NARROW.matches) showSidebar(false); },
    () => removeConversation(each))));
  $("export-markdown").disabled = $("export-json").disabled = !conversation.messages.length;
}

function drawMessages() {
  const { messages } = conversation;
  $("welcome").hidden = messages.length > 0;
  $("messages").replaceChildren(...messages.map((message, index) => messageItem(message, {
    raw: raw(), last: index === messages.length - 1, busy: running !== null,
    on: {
      edit: (item) => edit(index, item),
      regenerate: () => regenerate(index),
      version: (number) => {
        Object.assign(message, { version: number, ...message.versions[number] });
        changed();
        drawMessages();
      },
    },
  })));
  document.title = conversation.title ? `${conversation.title} · lit_gpt` : "lit_gpt";
  if (follows) toBottom();
}

function drawComposer() {
  const busy = running !== null;
  $("send").replaceChildren(icon(busy ? "stop" : "up"));
  $("send").title = busy ? "Stop" : "Send";
  $("send").setAttribute("aria-label", $("send").title);
  $("send").disabled = !busy && (!$("input").value.trim() || model === null);
  const area = $("input");
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

function drawModel() {
  $("model-name").textContent = model ? model.id : "No model";
  $("model-note").textContent = model ? `${raw() ? "continues text" : "chat"} · ${model.max_model_len.toLocaleString("en")} tokens` : "";
  $("input").placeholder = raw() ? "Text to continue" : "Message";
  $("input-label").textContent = raw() ? "Text to continue" : "Your message";
  $("system-field").hidden = raw();
  $("welcome-title").textContent = raw() ? "Start a text, and the model continues it" : "What is on your mind?";
  $("welcome-text").textContent = raw()
    ? "This model has learned to continue text. It has no chat template, so it does not answer questions."
    : "Answers come from the model on this server, and stay in this browser.";
  $("ideas").replaceChildren(...IDEAS[raw() ? "text" : "chat"].map((idea) => {
    const button = element("button", "", raw() ? element("code", "", idea.trimEnd()) : idea);
    button.type = "button";
    button.addEventListener("click", () => send(idea));
    return button;
  }));
}

function toBottom() { $("scroller").scrollTop = $("scroller").scrollHeight; }

function applyTheme() {
  const { theme } = store;
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const label = `Colours: ${theme === "auto" ? "as the system" : theme}`;
  $("theme").replaceChildren(icon(THEME_ICONS[theme]));
  $("theme").title = label;
  $("theme").setAttribute("aria-label", label);
}

function showSidebar(shown) {
  document.body.classList.toggle("narrowed", !shown);
  $("menu").setAttribute("aria-expanded", String(shown));
  $("veil").hidden = !(shown && NARROW.matches);
}

// ---- conversations ----

function changed() {
  conversation.changed = Date.now();
  if (!conversation.title && conversation.messages.length) {
    const words = conversation.messages[0].text.trim().replace(/\s+/g, " ");
    conversation.title = words.length > 60 ? `${words.slice(0, 60)}…` : words;
  }
  store.save();
  drawConversations();
}

function openConversation(which) {
  stop();
  conversation = which;
  follows = true;
  drawConversations();
  drawMessages();
}

function newConversation() {
  openConversation(store.conversations.find((each) => !each.messages.length) || store.add());
  if (NARROW.matches) showSidebar(false);
  $("input").focus();
}

function removeConversation(which) {
  if (!confirm(`Delete “${which.title}”?`)) return;
  store.remove(which.id);
  if (which === conversation) newConversation();
  else drawConversations();
}

// ---- asking and answering ----

function send(text) {
  if (running || !model || !text.trim()) return;
  conversation.messages.push({ role: "user", text: raw() ? text : text.trim() });
  follows = true;
  $("input").value = "";
  changed();
  answer();
}

function edit(index, item) {
  if (running) return;
  const finish = () => { drawMessages(); $("input").focus(); };
  const [box, area] = editorItem(conversation.messages[index].text, (text) => {
    conversation.messages.length = index;
    send(text);
  }, finish);
  item.replaceChildren(box);
  area.focus();
  area.setSelectionRange(area.value.length, area.value.length);
}

function regenerate(index) {
  if (running) return;
  const old = conversation.messages[index];
  const isLast = index === conversation.messages.length - 1;
  conversation.messages.length = index;
  const versions = isLast ? (old.versions || []).filter((version) => version.text) : [];
  follows = true;
  answer(versions);
}

function stop() { if (running) running.abort(); }

function requestFor(messages) {
  const body = { model: model.id, ...samplingFields() };
  if (!raw()) {
    const turns = messages.filter((each) => each.text).map((each) => ({ role: each.role, content: each.text }));
    const system = store.settings.system.trim();
    return ["v1/chat/completions", { ...body, messages: system ? [{ role: "system", content: system }, ...turns] : turns }];
  }
  body.max_tokens ??= Math.min(200, Math.floor(model.max_model_len / 2));
  const text = messages.map((each) => each.text).join("");
  const budget = Math.floor((model.max_model_len - 1 - body.max_tokens) * charactersPerToken * 0.9);
  return ["v1/completions", { ...body, prompt: text.slice(-Math.max(1, budget)) }];
}

async function answer(versions = []) {
  const mine = conversation;
  const message = { role: "assistant", text: "" };
  const [path, body] = requestFor(mine.messages);
  mine.messages.push(message);
  const controller = running = new AbortController();
  drawMessages();
  drawComposer();
  announce("The model is answering.");
  const item = $("messages").lastElementChild;
  item.classList.add("streaming", "fresh");
  if (!versions.length) item.previousElementSibling?.classList.add("fresh");
  item.setAttribute("aria-busy", "true");
  const started = performance.now();
  let first = 0, usage = null, finish = null, drawing = 0;
  const draw = () => {
    drawing = 0;
    fillBody(item.querySelector(".body"), message, raw());
    if (follows && conversation === mine) toBottom();
  };
  try {
    for await (const event of streamAnswer(path, body, controller.signal)) {
      if (event.text) {
        first ||= performance.now();
        message.text += event.text;
        // A long answer is drawn less often: each time it is drawn whole.
        drawing ||= message.text.length < 20000 ? requestAnimationFrame(draw) : setTimeout(draw, 250);
      } else ({ finish, usage } = event);
    }
  } catch (error) {
    if (error.name === "AbortError") finish = "stopped";
    else {
      message.failure = error instanceof RequestError ? error.message : "The server cannot be reached.";
      if (error.status === 401) openSettings("set-key");
    }
  }
  if (running === controller) running = null;
  cancelAnimationFrame(drawing);
  clearTimeout(drawing);
  const seconds = (performance.now() - (first || started)) / 1000;
  if (usage && raw() && body.prompt.length > 20) charactersPerToken = body.prompt.length / usage.prompt_tokens;
  const notes = [];
  if (usage) {
    const tokens = usage.completion_tokens;
    notes.push(`${tokens} token${tokens === 1 ? "" : "s"}`);
    if (tokens > 1 && seconds > 0) notes.push(`${((tokens - 1) / seconds).toFixed(1)} a second`);
  }
  if (finish === "length") notes.push("cut off at its limit");
  if (finish === "content_filter") notes.push("ended by the server's guard");
  if (finish === "stopped") notes.push("stopped");
  if (!message.failure) message.note = notes.join(" · ");
  if (message.text || !versions.length) versions.push({ text: message.text, note: message.note });
  message.versions = versions;
  message.version = versions.length - 1;
  if (!message.text && !message.failure && finish === "stopped" && versions.length === 1) mine.messages.splice(mine.messages.indexOf(message), 1);
  mine.changed = Date.now();
  store.save();
  if (conversation === mine) { drawConversations(); drawMessages(); }
  drawComposer();
  announce(message.failure ? `Failed: ${message.failure}` : finish === "stopped" ? "Stopped." : "The answer is complete.");
}

// ---- settings ----

const SETTING_NAMES = Object.keys(DEFAULTS);

function openSettings(focus) {
  for (const name of SETTING_NAMES) $(`set-${name}`).value = store.settings[name];
  $("set-key").value = store.key;
  drawOutputs();
  if (!$("settings").open) $("settings").showModal();
  if (focus) $(focus).focus();
}

function drawOutputs() {
  for (const name of ["temperature", "top_p"]) document.querySelector(`output[for=set-${name}]`).textContent = Number($(`set-${name}`).value).toFixed(2);
}

function settingChanged(event) {
  const name = event.target.id.replace("set-", "");
  drawOutputs();
  if (name === "key") { store.key = event.target.value.trim(); return; }
  if (!(name in DEFAULTS) || !event.target.validity.valid) return;
  store.settings[name] = event.target.type === "range" ? Number(event.target.value) : event.target.value;
  store.saveSettings();
}

async function loadModel() {
  try {
    model = await fetchModel();
  } catch (error) {
    model = null;
    if (error.status === 401) openSettings("set-key");
    else announce("The server cannot be reached.");
  }
  drawModel();
  drawMessages();
  drawComposer();
}

function saveFile(kind) {
  const name = (conversation.title || "conversation").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 50) || "conversation";
  if (kind === "json") download(`${name}.json`, "application/json", asJson(conversation, model ? model.id : "model"));
  else download(`${name}.md`, "text/markdown", asMarkdown(conversation, model ? model.id : "Model"));
}

// ---- hands and keys ----

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) stop();
  else send($("input").value);
});
$("input").addEventListener("input", drawComposer);
$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send($("input").value);
  }
  if (event.key === "ArrowUp" && !$("input").value) {
    const items = [...document.querySelectorAll(".message.user")];
    const index = conversation.messages.map((each) => each.role).lastIndexOf("user");
    if (index >= 0 && !running) { event.preventDefault(); edit(index, items[items.length - 1]); }
  }
});
document.addEventListener("keydown", (event) => {
  const typing = /^(?:TEXTAREA|INPUT)$/.test(document.activeElement.tagName);
  if (event.key === "Escape" && !$("settings").open) {
    if (running) stop();
    else if (NARROW.matches) showSidebar(false);
  } else if (event.key === "/" && !typing && !$("settings").open) {
    event.preventDefault();
    $("input").focus();
  } else if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    newConversation();
  }
});
$("scroller").addEventListener("scroll", () => {
  const area = $("scroller");
  follows = area.scrollHeight - area.scrollTop - area.clientHeight < NEAR_BOTTOM;
  $("latest").hidden = follows;
}, { passive: true });
$("latest").addEventListener("click", () => { follows = true; toBottom(); });
$("new").addEventListener("click", newConversation);
$("menu").addEventListener("click", () => showSidebar(document.body.classList.contains("narrowed")));
$("veil").addEventListener("click", () => showSidebar(false));
$("theme").addEventListener("click", () => { store.theme = THEMES[(THEMES.indexOf(store.theme) + 1) % THEMES.length]; applyTheme(); announce($("theme").title); });
$("settings-open").addEventListener("click", () => openSettings());
$("settings").addEventListener("input", settingChanged);
$("settings").addEventListener("click", (event) => { if (event.target === $("settings")) $("settings").close(); });
$("settings").addEventListener("close", () => { if (!model) loadModel(); });
$("settings-reset").addEventListener("click", () => { store.settings = { ...DEFAULTS }; store.saveSettings(); openSettings(); });
$("delete-all").addEventListener("click", () => {
  if (!confirm("Delete all conversations from this browser?")) return;
  store.conversations = [];
  store.save();
  $("settings").close();
  newConversation();
});
$("export-markdown").addEventListener("click", () => saveFile("markdown"));
$("export-json").addEventListener("click", () => saveFile("json"));
addEventListener("storage", (event) => {
  if (event.key === CONVERSATIONS) { store.reload(conversation); drawConversations(); }
  if (event.key === THEME) applyTheme();
});
NARROW.addEventListener("change", () => showSidebar(!NARROW.matches));

applyTheme();
showSidebar(!NARROW.matches);
conversation = store.conversations.find((each) => !each.messages.length) || store.add();
drawConversations();
drawModel();
drawComposer();
loadModel();
if (!NARROW.matches) $("input").focus();
