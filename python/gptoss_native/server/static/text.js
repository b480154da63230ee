// A little Markdown, as DOM nodes: code blocks, lists, headings, bold, inline code. What the model writes only ever
// becomes text, never HTML.
"use strict";

function element(name, text, className) {
  const found = document.createElement(name);
  if (text !== undefined) found.textContent = text;
  if (className) found.className = className;
  return found;
}

function inline(parent, text) {
  for (const piece of text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/)) {
    if (piece.length > 2 && piece.startsWith("`") && piece.endsWith("`")) parent.append(element("code", piece.slice(1, -1)));
    else if (piece.length > 4 && piece.startsWith("**") && piece.endsWith("**")) parent.append(element("strong", piece.slice(2, -2)));
    else if (piece) parent.append(piece);
  }
  return parent;
}

function markdown(text) {
  const found = document.createDocumentFragment();
  text.split(/^```[^\n]*\n?/m).forEach((part, number) => {
    if (number % 2) {
      const block = element("pre");
      block.append(element("code", part.replace(/\n$/, "")));
      found.append(block);
    } else {
      part.split(/\n{2,}/).forEach((paragraph) => found.append(...paragraphNodes(paragraph.trim())));
    }
  });
  return found;
}

function paragraphNodes(paragraph) {
  if (!paragraph) return [];
  const lines = paragraph.split("\n");
  const kind = lines.every((line) => /^\s*[-*] /.test(line)) ? "ul" : lines.every((line) => /^\s*\d+[.)] /.test(line)) ? "ol" : null;
  if (kind) {
    const list = element(kind);
    lines.forEach((line) => list.append(inline(element("li"), line.replace(/^\s*([-*]|\d+[.)]) /, ""))));
    return [list];
  }
  const heading = /^#{1,4} (.*)$/.exec(lines[0]);
  if (heading) return [inline(element("h3"), heading[1]), ...paragraphNodes(lines.slice(1).join("\n"))];
  const found = element("p");
  lines.forEach((line, number) => {
    if (number) found.append(element("br"));
    inline(found, line);
  });
  return [found];
}
