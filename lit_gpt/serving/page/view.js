// The page's parts: how a message, the list of conversations and the small buttons look and say what they are.

const $ = (id) => document.getElementById(id);

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

function iconButton(name, label, action) {
  const button = element("button", "icon", icon(name));
  button.type = "button";
  button.title = label;
  button.setAttribute("aria-label", label);
  button.addEventListener("click", action);
  return button;
}

function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    const done = await copyText(text());
    button.replaceChildren(icon(done ? "check" : "close"));
    announce(done ? "Copied." : "Copying is not allowed here.");
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // A plain http address other than localhost has no clipboard of its own.
    const area = element("textarea", "unseen");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

function announce(text) { $("status").textContent = text; }

function fillAnswer(body, text, raw) {
  if (raw) {
    body.textContent = text;
    return;
  }
  // Blocks that are as they were stay, and with them what a person has selected or scrolled in them.
  const blocks = [...renderAnswer(text).childNodes];
  let same = 0;
  while (same < blocks.length && body.childNodes[same]?.isEqualNode(blocks[same])) same += 1;
  while (body.childNodes.length > same) body.lastChild.remove();
  body.append(...blocks.slice(same));
}

// An answer; what a model thinks aloud before it, as Qwen and DeepSeek do, is folded away once it is done.
function renderAnswer(text) {
  const thought = /^\s*<think>([\s\S]*?)(<\/think>|$)/.exec(text);
  if (!thought) return renderMarkdown(text);
  const rest = renderMarkdown(text.slice(thought[0].length));
  if (!thought[1].trim()) return rest;
  const fold = element("details", "thought", element("summary", "", thought[2] ? "Thoughts" : "Thinking…"), renderMarkdown(thought[1]));
  fold.open = !thought[2];
  rest.prepend(fold);
  return rest;
}

// A person's message. `on` has what its buttons do.
function questionItem(turn, { raw, on }) {
  const item = messageItem("user", "You said:", raw);
  item.querySelector(".body").textContent = turn.text;
  item.append(actions(copyButton("Copy", () => turn.text), iconButton("pen", "Edit", () => on.edit(item)),
    iconButton("trash", "Remove this turn", on.remove)));
  return item;
}

// The answer that is shown of a turn. `ignored`: the model will not see the turn again.
function answerItem(turn, { raw, ignored, busy, on }) {
  const answer = shownAnswer(turn);
  // `open`, and not by this page: it was closed meanwhile, or another tab is at it.
  const note = answer.open ? "not complete" : answer.note;
  const failure = answer.open && !answer.text ? "It has not begun." : answer.failure;
  const item = messageItem("assistant", "The model said:", raw);
  fillAnswer(item.querySelector(".body"), answer.text, raw);
  if (failure && !busy) {
    const text = ignored ? `${sentence(failure)} The model does not read this turn.` : sentence(failure);
    const box = element("div", "failure", element("span", "", text), plainButton("Try again", "plain", on.again));
    box.setAttribute("role", "alert");
    item.append(box);
  }
  const buttons = failure && !busy ? [] : [iconButton("redo", "Answer again", on.again)];
  if (answer.text) buttons.unshift(copyButton("Copy", () => answer.text));
  if (turn.answers.length > 1) {
    const before = iconButton("left", "Earlier answer", () => on.show(turn.shown - 1));
    const after = iconButton("right", "Later answer", () => on.show(turn.shown + 1));
    before.disabled = turn.shown === 0;
    after.disabled = turn.shown === turn.answers.length - 1;
    buttons.push(before, element("span", "note", `${turn.shown + 1} / ${turn.answers.length}`), after);
  }
  if (note) buttons.push(element("span", "note", note));
  item.append(actions(...buttons));
  return item;
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1).replace(/\.?$/, ".");

function messageItem(role, heading, raw) {
  const body = element("div", role === "assistant" && !raw ? "body prose" : "body");
  return element("li", `message ${role}${raw ? " raw" : ""}`, element("h2", "unseen", heading), body);
}

const actions = (...parts) => element("div", "actions", ...parts);

function plainButton(label, kind, action) {
  const button = element("button", kind, label);
  button.type = "button";
  button.addEventListener("click", action);
  return button;
}

function editorItem(text, save, cancel) {
  const area = element("textarea");
  area.value = text;
  area.setAttribute("aria-label", "Edit your message");
  const submit = () => { if (area.value.trim()) save(area.value); };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); cancel(); }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
  });
  const box = element("div", "editor", area, element("div", "buttons", plainButton("Cancel", "plain", cancel), plainButton("Send", "primary", submit)));
  return [box, area];
}

function conversationItem(conversation, current, open, remove) {
  const opener = element("button", "open", conversation.title || "New conversation");
  opener.type = "button";
  opener.title = conversation.title;
  if (current) opener.setAttribute("aria-current", "true");
  opener.addEventListener("click", open);
  const remover = iconButton("trash", `Delete ${conversation.title || "this conversation"}`, remove);
  remover.classList.add("remove");
  return element("li", current ? "current" : "", opener, remover);
}
