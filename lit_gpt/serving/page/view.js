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

function fillBody(body, message, raw) {
  if (message.role === "user" || raw) {
    body.className = "body";
    body.textContent = message.text;
  } else {
    body.className = "body prose";
    // Blocks that are as they were stay, and with them what a person has selected or scrolled in them.
    const blocks = [...renderAnswer(message.text).childNodes];
    let same = 0;
    while (same < blocks.length && body.childNodes[same]?.isEqualNode(blocks[same])) same += 1;
    while (body.childNodes.length > same) body.lastChild.remove();
    body.append(...blocks.slice(same));
  }
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

// One message. `on` has what its buttons do: edit, regenerate, version, retry.
function messageItem(message, { raw, last, busy, on }) {
  const item = element("li", `message ${message.role}${raw ? " raw" : ""}`);
  item.append(element("span", "unseen", message.role === "user" ? "You said:" : "The model said:"));
  const body = element("div", "body");
  fillBody(body, message, raw);
  item.append(body);
  if (message.failure) {
    const again = element("button", "plain", "Try again");
    again.type = "button";
    again.addEventListener("click", on.regenerate);
    const box = element("div", "failure", element("span", "", message.failure), again);
    box.setAttribute("role", "alert");
    item.append(box);
  }
  const actions = element("div", "actions");
  if (message.text) actions.append(copyButton("Copy", () => message.text));
  if (message.role === "user") actions.append(iconButton("pen", "Edit", () => on.edit(item)));
  else {
    actions.append(iconButton("redo", "Answer again", on.regenerate));
    const versions = message.versions || [];
    if (versions.length > 1 && last) {
      const at = message.version;
      const before = iconButton("left", "Earlier answer", () => on.version(at - 1));
      const after = iconButton("right", "Later answer", () => on.version(at + 1));
      before.disabled = at === 0;
      after.disabled = at === versions.length - 1;
      actions.append(before, element("span", "note", `${at + 1} / ${versions.length}`), after);
    }
    if (message.note) actions.append(element("span", "note", message.note));
  }
  if (busy) for (const button of actions.querySelectorAll("button")) button.disabled = !/Copy/.test(button.title);
  item.append(actions);
  return item;
}

function editorItem(text, save, cancel) {
  const area = element("textarea");
  area.value = text;
  area.setAttribute("aria-label", "Edit your message");
  const button = (label, kind, action) => {
    const made = element("button", kind, label);
    made.type = "button";
    made.addEventListener("click", action);
    return made;
  };
  const submit = () => { if (area.value.trim()) save(area.value); };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); cancel(); }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
  });
  const box = element("div", "editor", area, element("div", "buttons", button("Cancel", "plain", cancel), button("Send", "primary", submit)));
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
