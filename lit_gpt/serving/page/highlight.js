// Colours for code: comments, strings, numbers and the words that most languages share. It knows no grammar, so it is
// right often enough to help the eye and never changes a character.

const HASH_COMMENTS = new Set(["python", "py", "sh", "bash", "shell", "zsh", "yaml", "yml", "toml", "ruby", "r", "perl", "makefile", "dockerfile", "console"]);
const DASH_COMMENTS = new Set(["sql", "lua", "haskell"]);
const KEYWORDS = new Set(`and as assert async await break case catch class const continue def default del delete do elif else
enum except export extends False finally fn for foreach from func function global if impl implements import in instanceof
interface is lambda let match mod module mut new nil None nonlocal not null or package pass private protected pub public
raise return self static struct super switch then this throw trait True try type typeof union unsafe use using var void
while with yield true false select where order by group insert update into values create table fi done echo int float
str bool string double long char`.split(/\s+/));

// Returns a fragment with the text of `code` in it, parts of it in coloured spans.
function highlight(code, language) {
  const fragment = document.createDocumentFragment();
  if (code.length > 50000 || language === "text" || language === "plain") {
    fragment.append(code);
    return fragment;
  }
  const comment = HASH_COMMENTS.has(language) ? "#[^\\n]*"
    : DASH_COMMENTS.has(language) ? "--[^\\n]*"
    : language === "" ? "(?:#|\\/\\/) [^\\n]*"
    : "\\/\\/[^\\n]*|\\/\\*[\\s\\S]*?(?:\\*\\/|$)|<!--[\\s\\S]*?(?:-->|$)";
  const parts = new RegExp(
    `(?<comment>${comment})` +
    `|(?<string>"""[\\s\\S]*?(?:"""|$)|'''[\\s\\S]*?(?:'''|$)|"(?:[^"\\\\\\n]|\\\\.)*"|'(?:[^'\\\\\\n]|\\\\.)*'|\`(?:[^\`\\\\]|\\\\.)*\`)` +
    `|(?<number>\\b\\d[\\d_]*(?:\\.\\d+)?(?:[eE][+-]?\\d+)?\\b)` +
    `|(?<word>[A-Za-z_][A-Za-z0-9_]*)`, "g");
  let last = 0;
  for (const found of code.matchAll(parts)) {
    let kind = found.groups.comment !== undefined ? "comment" : found.groups.string !== undefined ? "string"
      : found.groups.number !== undefined ? "number" : KEYWORDS.has(found[0]) ? "keyword" : "";
    if (!kind) continue;
    fragment.append(code.slice(last, found.index));
    const span = document.createElement("span");
    span.className = `t-${kind}`;
    span.textContent = found[0];
    fragment.append(span);
    last = found.index + found[0].length;
  }
  fragment.append(code.slice(last));
  return fragment;
}
