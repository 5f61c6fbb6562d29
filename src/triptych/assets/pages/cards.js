// Draws sample cards, image views and token tables from plain data. Data becomes text nodes only, never markup.

const SIZE = (w, h) => `${w}x${h}`;
const COUNT = (value) => Number(value).toLocaleString("en-US");

/** An element with properties, attributes (aria-*, data-*, role) and children. */
function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") made.style.cssText = value;
    else if (name in made && !name.includes("-") && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined && child !== false) made.append(child);
  return made;
}

/** What the data holds; the name of the page's own script reads it once. */
function pageData() {
  return JSON.parse(document.getElementById("data").textContent);
}

/** One table; the first column names the rows. Cells are texts or elements; numbers and what can be pressed go to the right. */
function table(heads, rows, caption) {
  const right = (cell) => cell instanceof HTMLButtonElement || /^[-+\d.,%]+( |$)/.test(cell instanceof Node ? cell.textContent : cell);
  const sides = heads.map((_, place) => (place && rows.length && rows.every((row) => right(row[place])) ? "" : "left"));
  return el("div", {class: "scroll", tabIndex: 0, role: "region", "aria-label": caption || heads.join(", ")},
    el("table", {},
      el("thead", {}, el("tr", {}, heads.map((head, place) => el("th", {scope: "col", class: sides[place]}, head)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, place) => el("td", {class: sides[place]}, cell)))))));
}

function caption(image, number) {
  return `${number}: ${SIZE(image.w, image.h)} → ${SIZE(image.rw, image.rh)}, ${COUNT(image.tokens)} tok`;
}

/** An image at its mark; a click shows it as stored and as the model sees it. */
function figure(image, number, context) {
  const shown = image.thumb
    ? el("button", {type: "button", "aria-label": `Image ${number}, ${image.name}: show it larger`,
      onclick: () => showImage(image, number, context)},
      el("img", {src: image.thumb, alt: "", loading: "lazy"}))
    : el("span", {class: "missing"}, image.error || "no copy in this page");
  return el("figure", {class: "image", "data-image": number}, shown,
    el("figcaption", {title: image.name}, image.rw ? caption(image, number) : `${number}: ${image.name}`));
}

function showImage(image, number, context) {
  const factor = context.factor || 28;
  const stored = el("figure", {}, el("div", {class: "frame"}, el("img", {src: image.stored || image.thumb, alt: "the image as stored"})),
    el("figcaption", {}, `as stored: ${SIZE(image.w, image.h)}`));
  const seen = el("img", {src: image.model || image.thumb, alt: "the image as the model sees it"});
  const width = Math.min(image.rw, 672);
  seen.style.width = `${width}px`;
  seen.style.aspectRatio = `${image.rw} / ${image.rh}`;
  const frame = el("div", {class: "frame", style: `--columns: ${image.rw / factor}; --rows: ${image.rh / factor}`}, seen);
  const natural = image.natural ? `, ${COUNT(image.natural)} tok without the budget of the sample` : "";
  const model = el("figure", {}, frame,
    el("figcaption", {}, `as the model sees it: ${SIZE(image.rw, image.rh)}, ${COUNT(image.tokens)} tok${natural}`));
  const grid = el("button", {type: "button", "aria-pressed": "false", onclick: () => {
    const on = frame.classList.toggle("cells");
    grid.setAttribute("aria-pressed", String(on));
  }}, "show tokens");
  const dialog = el("dialog", {"aria-label": `Image ${number}: ${image.name}`},
    el("div", {class: "bar"}, el("strong", {}, `Image ${number}`), el("span", {class: "mono"}, image.name), grid,
      el("button", {type: "button", autofocus: true, onclick: () => dialog.close()}, "close")),
    image.stored ? null : el("p", {class: "faint"}, "Only a small copy of this image is in the page; details are lost in it."),
    el("div", {class: "views"}, stored, model));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

/** A turn of the dialogue, images at their marks, trained text marked. */
function turn(data, images, context) {
  const parts = data.parts.map((part) => {
    if (part.i !== undefined) return figure(images[part.i] || {name: "?"}, part.i + 1, context);
    const kind = [part.m && "m", part.y && "y"].filter(Boolean).join(" ");
    const rest = part.cut ? el("span", {class: "faint"}, ` [${COUNT(part.cut)} more characters]`) : null;
    return el("span", {class: kind}, part.s, rest);
  });
  return el("div", {class: "turn", "data-role": data.role}, el("span", {class: "role"}, data.role || "text"), parts);
}

/** [=|-|+, text] pieces: expected only is struck through, answered only underlined. */
function difference(pieces) {
  const tags = {"-": ["del", "expected: "], "+": ["ins", "answered: "]};
  return pieces.map(([kind, text]) => tags[kind] ? el(tags[kind][0], {title: tags[kind][1]}, text) : text);
}

/** Rows of a token table; an image is one row. */
function tokenRows(ids, images, vocabulary, factor) {
  const slots = new Map(ids.slots.map((slot, number) => [slot, number]));
  const starts = new Map(ids.runs);
  const trained = new Uint8Array(ids.ids.length);
  for (const [from, to] of ids.y) trained.fill(1, from, to);
  let position = 0, place = 0;
  return ids.ids.map((id, number) => {
    position = starts.has(number) ? starts.get(number) : position + 1;
    const image = slots.has(number) ? images[slots.get(number)] : null;
    const rows = image ? image.rh / factor : 1, columns = image ? image.rw / factor : 1;
    const row = [String(place), String(id), image ? `${COUNT(rows * columns)} × ${vocabulary[id]}` : JSON.stringify(vocabulary[id]).slice(1, -1),
      trained[number] ? String(id) : "-100",
      image ? `${position}, ${position}-${position + rows - 1}, ${position}-${position + columns - 1}` : String(position)];
    place += rows * columns;
    return row;
  });
}

function tokens(card, context) {
  const box = el("div");
  const button = el("button", {type: "button", "aria-expanded": "false", onclick: () => {
    const open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    box.replaceChildren();
    if (open) return;
    const rows = tokenRows(card.ids, card.images, context.vocabulary || {}, context.factor || 28);
    let shown = 0;
    const body = el("tbody");
    const more = el("button", {type: "button", onclick: () => add()}, "more");
    const add = () => {
      for (const row of rows.slice(shown, shown + 300)) body.append(el("tr", {}, row.map((cell, i) => el("td", {class: i === 2 ? "mono left" : "mono"}, cell))));
      shown += 300;
      more.hidden = shown >= rows.length;
    };
    add();
    const heads = ["place", "id", "text", "label", "position (of images: t, h, w)"];
    const left = card.ids.left_out ? el("p", {class: "faint"}, `${COUNT(card.ids.left_out)} more tokens are not in this page; triptych encode prints all`) : null;
    box.append(el("div", {class: "scroll", tabIndex: 0, role: "region", "aria-label": "tokens"},
      el("table", {class: "tokens"}, el("thead", {}, el("tr", {}, heads.map((head) => el("th", {scope: "col"}, head)))), body)), more, left || "");
  }}, "tokens");
  return [button, box];
}

/**
 * A sample card.
 * data: as triptych/pages/cards.py describes it; chips: [[text, kind]]; problems: [text].
 * context: {vocabulary, factor, extra(card) -> elements}
 */
function card(data, context = {}) {
  const chips = (data.chips || []).map(([text, kind]) => el("span", {class: `chip ${kind || ""}`}, text));
  const meta = [];
  if (data.tokens) {
    meta.push(`${COUNT(data.tokens)} tokens`);
    if (data.image_tokens) meta.push(`${Math.round(100 * data.image_tokens / data.tokens)}% images`);
    meta.push(`${COUNT(data.supervised || 0)} trained`);
  }
  return el("article", {class: `card ${data.state || ""}`, tabIndex: -1, "data-id": data.id},
    el("h3", {}, data.origin),
    el("div", {class: "bar"}, data.task ? el("span", {class: "chip"}, data.task) : null, chips),
    meta.length ? el("div", {class: "meta"}, meta.join(" · ")) : null,
    (data.problems || []).map((text) => el("p", {class: "missing"}, text)),
    (data.turns || []).map((item) => turn(item, data.images || [], context)),
    data.raw ? el("div", {class: "turn mono"}, data.raw) : null,
    context.extra ? context.extra(data) : null,
    data.ids ? el("div", {class: "bar"}, tokens(data, context)) : null);
}

/** A button that changes between light and dark. */
function themeButton() {
  return el("button", {type: "button", onclick: () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  }}, "light / dark");
}
