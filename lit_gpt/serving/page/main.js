// The page's life: a message goes out, an answer comes in piece by piece, and the person can stop, repeat or change it.

const NARROW = matchMedia("(max-width: 48rem)");
const IDEAS = {
  chat: ["Explain attention to someone who has never seen a neural network", "Write a haiku about gradient descent",
    "What makes a good tokenizer?", "Plan a weekend in the mountains, as a table"],
  text: ["def fibonacci(n):\n", "class Stack:\n    ", "import os\n\n", "Once upon a time"],
};
const THEME_ICONS = { auto: "auto", light: "sun", dark: "moon" };
const NEAR_BOTTOM = 80;
const SAVE_EVERY = 1000; // milliseconds, while an answer comes in
const TOO_LONG = new Set(["context_length_exceeded", "prompt_too_long"]);
const TEXT_TOKENS = 200; // of a continuation, where the settings say nothing

let model = null;
let conversation = null;
let running = null; // { conversation, controller } of the answer that is coming in
let charactersPerToken = 2; // a first guess for texts without a template; measured with each answer
let leaving = false; // the page is being closed or reloaded
let follows = true; // the view stays with the newest line
const raw = () => model !== null && !model.chat;

// ---- what is shown ----

function drawConversations() {
  const shown = store.conversations.filter((each) => each.turns.length);
  $("no-conversations").hidden = shown.length > 0;
  $("conversations").hidden = shown.length === 0;
  $("conversations").replaceChildren(...shown.map((each) => conversationItem(each, each === conversation,
    () => { openConversation(each); if (NARROW.matches) showSidebar(false); },
    () => removeConversation(each))));
  $("export-markdown").disabled = $("export-json").disabled = !conversation.turns.length;
  $("unsaved").hidden = store.unsaved.size === 0;
}

function drawMessages() {
  const { turns } = conversation;
  $("welcome").hidden = turns.length > 0;
  $("messages").replaceChildren(...turns.flatMap((turn, index) => {
    const busy = running !== null && index === turns.length - 1;
    const ignored = !raw() && !shownAnswer(turn).text;
    const items = [
      questionItem(turn, { raw: raw(), on: { edit: (item) => edit(index, item), remove: () => removeTurn(index) } }),
      answerItem(turn, { raw: raw(), ignored, busy, on: { again: () => regenerate(index), show: (number) => show(turn, number) } }),
    ];
    for (const button of running ? items.flatMap((item) => [...item.querySelectorAll(".actions button, .failure button")]) : []) {
      button.disabled = !/^Copy/.test(button.title);
    }
    return items;
  }));
  $("heading").textContent = conversation.title || "New conversation";
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

function save(which) {
  if (store.save(which)) announce("Another tab has changed this conversation; both are kept.");
  drawConversations();
}

function changed() {
  conversation.changed = Date.now();
  if (!conversation.title && conversation.turns.length) conversation.title = titleOf(conversation.turns[0].text);
  save(conversation);
}

function openConversation(which) {
  stop();
  conversation = which;
  follows = true;
  drawConversations();
  drawMessages();
}

function newConversation() {
  openConversation(store.conversations.find((each) => !each.turns.length) || store.add());
  if (NARROW.matches) showSidebar(false);
  $("input").focus();
}

function removeConversation(which) {
  if (!confirm(`Delete “${which.title}”?`)) return;
  if (which === conversation) stop();
  store.remove(which);
  if (which === conversation) newConversation();
  else drawConversations();
}

// Whether the turns after one may go: what follows an answer belongs to it.
function mayDropAfter(index) {
  const after = conversation.turns.length - index - 1;
  return after === 0 || confirm(`This removes the ${after === 1 ? "turn" : `${after} turns`} after it.`);
}

function removeTurn(index) {
  if (running || !confirm("Remove this turn?")) return;
  conversation.turns.splice(index, 1);
  changed();
  drawMessages();
}

function show(turn, number) {
  turn.shown = number;
  changed();
  drawMessages();
}

function edit(index, item) {
  if (running) return;
  const finish = () => { drawMessages(); $("input").focus(); };
  const [box, area] = editorItem(conversation.turns[index].text, (text) => {
    if (!mayDropAfter(index)) return;
    conversation.turns.length = index;
    ask(text);
  }, finish);
  item.replaceChildren(box);
  area.focus();
  area.setSelectionRange(area.value.length, area.value.length);
}

// ---- asking and answering ----

function send(text) {
  if (running || !model || !text.trim()) return;
  $("input").value = "";
  ask(text);
}

function ask(text) {
  conversation.turns.push({ text: raw() ? text : text.trim(), answers: [], shown: 0 });
  changed();
  answer();
}

function regenerate(index) {
  if (running || !model || !mayDropAfter(index)) return;
  conversation.turns.length = index + 1;
  answer();
}

function stop() { if (running) running.controller.abort(); }

// The request for an answer to the last turn, without the first `left` turns (or characters of a text) that do not fit.
// Turns without an answer are left out: two messages of one person in a row are not what a model has learned.
function requestFor(turns, left) {
  const body = { model: model.id, ...samplingFields() };
  if (raw()) {
    body.max_tokens ??= Math.min(TEXT_TOKENS, Math.floor(model.max_model_len / 2));
    const prompt = messagesOf(turns).map((each) => each.content).join("").slice(left).replace(/^[\uDC00-\uDFFF]/, "");
    return ["v1/completions", { ...body, prompt: prompt.toWellFormed() }];
  }
  const system = store.settings.system.trim();
  const read = [...readTurns(turns).slice(left), { ...turns[turns.length - 1], answers: [] }];
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...messagesOf(read)];
  return ["v1/chat/completions", { ...body, messages: messages.map((each) => ({ ...each, content: each.content.toWellFormed() })) }];
}

const readTurns = (turns) => turns.slice(0, -1).filter((turn) => shownAnswer(turn).text);

// How much to leave out first, and how much more where the server says that it is still too long; null: nothing is left.
function firstLeft(turns) {
  if (!raw()) return 0;
  const answerTokens = Number(store.settings.max_tokens) || Math.min(TEXT_TOKENS, Math.floor(model.max_model_len / 2));
  const characters = messagesOf(turns).reduce((sum, each) => sum + each.content.length, 0);
  return Math.max(0, characters - Math.floor(Math.max(1, model.max_model_len - 1 - answerTokens) * charactersPerToken * 0.9));
}

function moreLeft(turns, left) {
  const all = raw() ? messagesOf(turns).reduce((sum, each) => sum + each.content.length, 0) - 1 : readTurns(turns).length;
  return left >= all ? null : left + Math.ceil((all - left) / 2);
}

async function answer() {
  const mine = conversation, { turns } = mine, turn = turns[turns.length - 1];
  turn.answers = turn.answers.filter((each) => each.text);
  const coming = { text: "", open: true };
  turn.shown = turn.answers.length;
  let left = firstLeft(turns);
  let [path, body] = requestFor(turns, left);
  turn.answers.push(coming);
  const controller = new AbortController();
  running = { conversation: mine, controller };
  follows = true;
  drawMessages();
  drawComposer();
  announce("The model is answering.");
  const item = $("messages").lastElementChild;
  item.classList.add("streaming", "fresh");
  if (turn.answers.length === 1) item.previousElementSibling.classList.add("fresh");
  item.setAttribute("aria-busy", "true");
  const started = performance.now();
  let first = 0, usage = null, finish = null, drawing = 0, saving = 0;
  const draw = () => {
    drawing = 0;
    if (conversation !== mine) return;
    fillAnswer(item.querySelector(".body"), coming.text, raw());
    if (follows) toBottom();
  };
  for (;;) {
    try {
      for await (const event of streamAnswer(path, body, controller.signal)) {
        if (event.text) {
          first ||= performance.now();
          coming.text += event.text;
          // A long answer is drawn less often: each time it is drawn whole.
          drawing ||= coming.text.length < 20000 ? requestAnimationFrame(draw) : setTimeout(draw, 250);
          saving ||= setTimeout(() => { saving = 0; save(mine); }, SAVE_EVERY);
        } else ({ finish, usage } = event);
      }
    } catch (error) {
      const more = TOO_LONG.has(error.code) && !coming.text ? moreLeft(turns, left) : null;
      if (more !== null) {
        left = more;
        [path, body] = requestFor(turns, left);
        continue;
      }
      if (leaving) return; // the browser has broken the connection off; what came in is saved
      if (error.name === "AbortError") finish = "stopped";
      else coming.failure = error instanceof RequestError ? error.message : "The server cannot be reached.";
      if (error.status === 401) openSettings("set-key");
    }
    break;
  }
  running = null;
  cancelAnimationFrame(drawing);
  clearTimeout(drawing);
  clearTimeout(saving);
  delete coming.open;
  const seconds = (performance.now() - (first || started)) / 1000;
  if (usage && raw() && body.prompt.length > 20) charactersPerToken = body.prompt.length / usage.prompt_tokens;
  const notes = [];
  if (usage) {
    const tokens = usage.completion_tokens;
    notes.push(`${tokens} token${tokens === 1 ? "" : "s"}`);
    if (tokens > 1 && seconds > 0) notes.push(`${((tokens - 1) / seconds).toFixed(1)} a second`);
  }
  if (left && coming.text) notes.push(raw() ? "the beginning did not fit" : `the first ${left === 1 ? "turn" : `${left} turns`} did not fit`);
  if (finish === "length") notes.push("cut off at its limit");
  if (finish === "content_filter") notes.push("ended by the server's guard");
  if (finish === "stopped" && coming.text) notes.push("stopped");
  if (!coming.text) coming.failure ??= finish === "stopped" ? "It was stopped before it began." : "The answer is empty.";
  coming.note = notes.join(" · ");
  if (store.conversations.includes(mine)) {
    mine.changed = Date.now();
    save(mine);
  }
  drawMessages();
  drawComposer();
  announce(coming.failure ? `Failed: ${coming.failure}` : finish === "stopped" ? "Stopped." : "The answer is complete.");
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
    if (items.length && !running) { event.preventDefault(); edit(items.length - 1, items[items.length - 1]); }
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
  stop();
  for (const each of [...store.conversations]) store.remove(each);
  $("settings").close();
  newConversation();
});
$("export-markdown").addEventListener("click", () => saveFile("markdown"));
$("export-json").addEventListener("click", () => saveFile("json"));
addEventListener("storage", (event) => {
  if (event.key === THEME) applyTheme();
  if (!event.key?.startsWith(CONVERSATION)) return;
  const inUse = (each) => each === conversation && (running !== null || document.querySelector(".editor") !== null);
  store.reload(event.key, inUse);
  if (!store.conversations.includes(conversation)) newConversation();
  else if (event.key === CONVERSATION + conversation.id && !inUse(conversation)) drawMessages();
  drawConversations();
});
// What has come in of an answer is kept when the page is left.
addEventListener("pagehide", () => { leaving = true; if (running) store.save(running.conversation); });
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
addEventListener("beforeunload", (event) => { if (store.unsaved.size) event.preventDefault(); });
NARROW.addEventListener("change", () => showSidebar(!NARROW.matches));

applyTheme();
showSidebar(!NARROW.matches);
store.sort();
conversation = store.add();
drawConversations();
drawModel();
drawComposer();
loadModel();
if (!NARROW.matches) $("input").focus();
