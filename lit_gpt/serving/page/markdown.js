// Markdown → DOM. markdown-it reads what a model wrote: tags in it are shown as text, links keep only schemes that open a
// page or a mail, and pictures become links, so that nothing is loaded from anywhere. DOMPurify then lets only the elements
// of plain formatting through, and is the one place where text becomes HTML (the page's policy lets no other do that).

const SAFE_LINK = /^(?:https?:|mailto:)/i;
const LONGEST_HIGHLIGHTED = 50000;
const TASK = /^\[([ xX])\]\s+/;
const FIRST_HEADING = 3; // below the page's own heading and the message's
const ALLOWED = {
  ALLOWED_TAGS: ["a", "blockquote", "br", "code", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s", "span",
    "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"],
  ALLOWED_ATTR: ["class", "href", "start"],
  ALLOWED_URI_REGEXP: SAFE_LINK,
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const markdown = markdownit({ html: false, linkify: true, breaks: true, highlight: highlighted });
markdown.linkify.set({ fuzzyLink: false, fuzzyEmail: false }); // `config.py` is no address
markdown.validateLink = (url) => SAFE_LINK.test(url);
markdown.renderer.rules.image = (tokens, index) => {
  const { escapeHtml } = markdown.utils;
  const address = tokens[index].attrGet("src");
  return `<a href="${escapeHtml(address)}">${escapeHtml(tokens[index].content || address)}</a>`;
};
markdown.core.ruler.push("outline", ({ tokens }) => {
  const above = []; // levels of the headings that this one is under, so that no level is skipped
  for (const token of tokens) {
    if (token.type === "heading_open") {
      const level = Number(token.tag[1]);
      while (above.length && above[above.length - 1] >= level) above.pop();
      above.push(level);
    }
    if (token.type.startsWith("heading_")) token.tag = `h${Math.min(6, FIRST_HEADING - 1 + above.length)}`;
    // The page's policy allows no style in an attribute.
    const side = /^text-align:(\w+)$/.exec(token.attrGet("style") || "");
    if (side) token.attrs = [["class", side[1]]];
  }
});

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.target = "_blank";
  node.rel = "noopener noreferrer nofollow";
});

function highlighted(code, language) {
  if (!hljs.getLanguage(language) || code.length > LONGEST_HIGHLIGHTED) return ""; // as it is
  return hljs.highlight(code, { language, ignoreIllegals: true }).value;
}

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// Returns a fragment.
function renderMarkdown(text) {
  const fragment = DOMPurify.sanitize(markdown.render(text), ALLOWED);
  for (const table of fragment.querySelectorAll("table")) frame(table, scrollable(element("div", "table"), "Table"));
  for (const block of fragment.querySelectorAll("pre")) frameCode(block);
  for (const item of fragment.querySelectorAll("li")) markTask(item);
  while (fragment.lastChild?.nodeType === Node.TEXT_NODE) fragment.lastChild.remove(); // the line's end
  return fragment;
}

function frame(inner, outer) {
  inner.replaceWith(outer);
  outer.append(inner);
}

function frameCode(block) {
  const code = block.firstElementChild || block;
  if (code.lastChild?.nodeType === Node.TEXT_NODE) code.lastChild.data = code.lastChild.data.replace(/\n$/, "");
  const name = /(?:^| )language-(\S+)/.exec(code.className)?.[1].slice(0, 24) || "code";
  const bar = element("div", "bar", element("span", "", name), copyButton("Copy the code", () => code.textContent));
  frame(scrollable(block, `Code: ${name}`), element("div", "code", bar));
}

// A box that scrolls sideways can be reached and read without a mouse.
function scrollable(box, label) {
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", label);
  return box;
}

// `- [x] done` becomes a box that is ticked, named by the item's text.
function markTask(item) {
  const place = item.firstElementChild?.tagName === "P" ? item.firstElementChild : item;
  const text = place.firstChild;
  const task = text?.nodeType === Node.TEXT_NODE && TASK.exec(text.data);
  if (!task) return;
  text.data = text.data.slice(task[0].length);
  const box = element("input");
  box.type = "checkbox";
  box.disabled = true;
  box.checked = task[1] !== " ";
  box.setAttribute("aria-label", place.textContent.split("\n")[0].trim() || "Task");
  item.classList.add("task");
  place.prepend(box);
}
