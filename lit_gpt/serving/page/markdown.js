// Markdown → DOM. What a model writes is data: it becomes text nodes and elements made here, one by one, and never goes
// through an HTML parser; tags in it are shown as they are written. Links keep only schemes that open a page or a mail,
// and pictures become links, so that nothing is loaded from anywhere.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])\s*(?:\1\s*){2,}$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(?:\s+(.*)|\s*)$/;
const TABLE_LINE = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
const SAFE_LINK = /^(?:https?:|mailto:)/i;
const DEEPEST = 12;

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// Returns a fragment; `depth` counts quotes and lists inside each other.
function renderMarkdown(text, depth = 0) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const fragment = document.createDocumentFragment();
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    if (!line.trim()) { at += 1; continue; }
    const fence = FENCE.exec(line);
    if (fence) {
      const close = new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},}\\s*$`);
      let end = at + 1;
      while (end < lines.length && !close.test(lines[end])) end += 1;
      fragment.append(codeBlock(lines.slice(at + 1, end).join("\n"), fence[2]));
      at = end + 1;
      continue;
    }
    const heading = HEADING.exec(line);
    if (heading) {
      // The page's own heading is the first; those of an answer come below it.
      fragment.append(element(`h${Math.min(6, heading[1].length + 1)}`, "", inline(heading[2])));
      at += 1;
      continue;
    }
    if (RULE.test(line)) { fragment.append(element("hr")); at += 1; continue; }
    if (/^ {0,3}>/.test(line) && depth < DEEPEST) {
      let end = at;
      while (end < lines.length && /^ {0,3}>/.test(lines[end])) end += 1;
      const quoted = lines.slice(at, end).map((each) => each.replace(/^ {0,3}> ?/, "")).join("\n");
      fragment.append(element("blockquote", "", renderMarkdown(quoted, depth + 1)));
      at = end;
      continue;
    }
    if (ITEM.test(line) && depth < DEEPEST) {
      const [list, end] = renderList(lines, at, depth);
      fragment.append(list);
      at = end;
      continue;
    }
    if (line.includes("|") && at + 1 < lines.length && TABLE_LINE.test(lines[at + 1]) && lines[at + 1].includes("-")) {
      let end = at + 2;
      while (end < lines.length && lines[end].includes("|") && lines[end].trim()) end += 1;
      fragment.append(renderTable(lines.slice(at, end)));
      at = end;
      continue;
    }
    let end = at + 1;
    while (end < lines.length && lines[end].trim() && !startsBlock(lines[end])) end += 1;
    const paragraph = element("p");
    lines.slice(at, end).forEach((each, number) => {
      if (number) paragraph.append(element("br"));
      paragraph.append(inline(each.trim()));
    });
    fragment.append(paragraph);
    at = end;
  }
  return fragment;
}

function startsBlock(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || /^ {0,3}>/.test(line) || ITEM.test(line);
}

function renderList(lines, start, depth) {
  const [, indent, mark] = ITEM.exec(lines[start]);
  const ordered = /\d/.test(mark);
  const list = element(ordered ? "ol" : "ul");
  if (ordered && parseInt(mark, 10) !== 1) list.start = parseInt(mark, 10);
  let at = start;
  while (at < lines.length) {
    const found = ITEM.exec(lines[at]);
    if (!found || found[1].length !== indent.length || /\d/.test(found[2]) !== ordered || RULE.test(lines[at])) break;
    const inside = [found[3] || ""];
    at += 1;
    // What is indented below an item belongs to it; an empty line ends it unless such a line follows.
    while (at < lines.length) {
      const spaces = lines[at].length - lines[at].trimStart().length;
      if (!lines[at].trim()) {
        const next = lines.slice(at).find((each) => each.trim());
        if (next === undefined || next.length - next.trimStart().length <= indent.length) break;
        inside.push("");
      } else if (spaces > indent.length) {
        inside.push(lines[at].slice(Math.min(spaces, indent.length + found[2].length + 1)));
      } else if (!startsBlock(lines[at]) && inside[inside.length - 1] !== "") {
        inside.push(lines[at]);
      } else break;
      at += 1;
    }
    list.append(listItem(inside, depth));
    let next = at;
    while (next < lines.length && !lines[next].trim()) next += 1;
    const follows = next < lines.length ? ITEM.exec(lines[next]) : null;
    if (next > at && follows && follows[1].length === indent.length) at = next;
  }
  return [list, at];
}

function listItem(lines, depth) {
  const item = element("li");
  const task = /^\[([ xX])\]\s+(.*)$/.exec(lines[0]);
  if (task) {
    const box = element("input");
    box.type = "checkbox";
    box.disabled = true;
    box.checked = task[1] !== " ";
    item.className = "task";
    item.append(box);
    lines[0] = task[2];
  }
  const inside = renderMarkdown(lines.join("\n"), depth + 1);
  // A single paragraph, or one before a list, needs no margin.
  if (inside.firstChild && inside.firstChild.nodeName === "P") inside.firstChild.replaceWith(...inside.firstChild.childNodes);
  item.append(inside);
  return item;
}

function renderTable(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
  const row = (line, name) => element("tr", "", ...cells(line).map((cell) => element(name, "", inline(cell))));
  const table = element("table", "", element("thead", "", row(lines[0], "th")));
  table.append(element("tbody", "", ...lines.slice(2).map((line) => row(line, "td"))));
  return element("div", "table", table);
}

function codeBlock(code, language) {
  const name = language.toLowerCase().replace(/[^a-z0-9+#.-]/g, "").slice(0, 24);
  const bar = element("div", "bar", element("span", "", name || "code"), copyButton("Copy the code", () => code));
  const inner = element("code");
  inner.append(highlight(code, name));
  const scroll = element("pre", "", inner);
  scroll.tabIndex = 0;
  return element("div", "code", bar, scroll);
}

const INLINE = new RegExp([
  "(?<escape>\\\\[\\\\`*_{}\\[\\]()#+\\-.!~|<>])",
  "(?<ticks>`+)(?<code>[\\s\\S]*?[^`])\\k<ticks>(?!`)",
  "(?<image>!?)\\[(?<label>(?:[^\\[\\]\\\\]|\\\\.){0,500})\\]\\((?<target>[^()\\s]{1,2000}(?:\\([^()\\s]*\\)[^()\\s]*)?)(?:\\s+\"[^\"]*\")?\\)",
  "(?<url>https?:\\/\\/[^\\s<>\"'`]+[^\\s<>\"'`.,;:!?)\\]])",
  "\\*\\*(?<bold>(?=\\S)[\\s\\S]*?\\S)\\*\\*",
  "(?<![A-Za-z0-9_])__(?<bold2>(?=\\S)[\\s\\S]*?\\S)__(?![A-Za-z0-9_])",
  "~~(?<strike>(?=\\S)[\\s\\S]*?\\S)~~",
  "\\*(?<italic>(?=[^\\s*])[^*]*?[^\\s*])\\*(?!\\*)",
  "(?<![A-Za-z0-9_])_(?<italic2>(?=[^\\s_])[^_]*?[^\\s_])_(?![A-Za-z0-9_])",
].join("|"), "g");

function inline(text, depth = 0) {
  const fragment = document.createDocumentFragment();
  if (depth > 6) { fragment.append(text); return fragment; }
  let last = 0;
  for (const found of text.matchAll(INLINE)) {
    fragment.append(text.slice(last, found.index));
    last = found.index + found[0].length;
    const part = found.groups;
    if (part.escape !== undefined) fragment.append(part.escape[1]);
    else if (part.code !== undefined) fragment.append(element("code", "", part.code.trim()));
    else if (part.target !== undefined) fragment.append(link(part.target, part.label || part.target, found[0], depth));
    else if (part.url !== undefined) fragment.append(link(part.url, part.url, part.url, 9));
    else if (part.strike !== undefined) fragment.append(element("del", "", inline(part.strike, depth + 1)));
    else if (part.bold !== undefined || part.bold2 !== undefined) fragment.append(element("strong", "", inline(part.bold ?? part.bold2, depth + 1)));
    else fragment.append(element("em", "", inline(part.italic ?? part.italic2, depth + 1)));
  }
  fragment.append(text.slice(last));
  return fragment;
}

function link(target, label, written, depth) {
  if (!SAFE_LINK.test(target)) return document.createTextNode(written);
  const made = element("a", "", depth > 6 ? label : inline(label, 6));
  made.href = target;
  made.target = "_blank";
  made.rel = "noopener noreferrer nofollow";
  return made;
}
