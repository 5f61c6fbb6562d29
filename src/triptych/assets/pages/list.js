// A list of cards: chips, search, sorting, pages, and keys. Chips of one group widen each other, groups narrow.

const PER_PAGE = 24;
const KEYS = "Keys: j and k next and previous card, n and p next and previous page, / search, Enter opens an image, Esc closes it.";

/**
 * options: {
 *   groups: [{name, values(card) -> [text]}],
 *   sorts: {name: (card) -> number or text},
 *   search(card) -> text, render(card) -> element
 * }
 * Returns {element, toggle(group, value), range(name, value(card), low, high), refresh()}.
 */
function cardList(cards, options) {
  const state = {picked: new Map(), ranges: new Map(), words: "", sort: Object.keys(options.sorts)[0], page: 0};
  const texts = new Map();
  const textOf = (item) => {
    if (!texts.has(item)) texts.set(item, options.search(item).toLowerCase());
    return texts.get(item);
  };
  const passes = (item, without) => {
    for (const group of options.groups) {
      const wanted = state.picked.get(group.name);
      if (group.name !== without && wanted && wanted.size && !group.values(item).some((value) => wanted.has(value))) return false;
    }
    for (const {value, low, high} of state.ranges.values()) if (!(value(item) >= low && value(item) <= high)) return false;
    return state.words.split(/\s+/).every((word) => textOf(item).includes(word));
  };
  const found = () => {
    const kept = cards.filter((item) => passes(item));
    const key = options.sorts[state.sort];
    return kept.map((item, place) => [key(item), place, item])
      .sort((a, b) => (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : a[1] - b[1])).map((entry) => entry[2]);
  };
  const count = el("span", {role: "status", class: "faint"});
  const chips = el("div");
  const box = el("div", {class: "cards"});
  const pager = el("nav", {class: "bar", "aria-label": "pages"});
  const search = el("input", {type: "search", placeholder: "search texts, paths, answers", "aria-label": "search",
    oninput: () => { state.words = search.value.toLowerCase().trim(); state.page = 0; draw(); }});
  const sort = el("select", {"aria-label": "sort by", onchange: () => { state.sort = sort.value; state.page = 0; draw(); }},
    Object.keys(options.sorts).map((name) => el("option", {value: name}, name)));
  function drawChips() {
    const rows = options.groups.map((group) => {
      const counts = new Map();
      for (const item of cards) for (const value of new Set(group.values(item))) if (passes(item, group.name)) counts.set(value, (counts.get(value) || 0) + 1);
      const wanted = state.picked.get(group.name) || new Set();
      for (const value of wanted) if (!counts.has(value)) counts.set(value, 0);
      if (!counts.size) return null;
      const names = [...counts.keys()].sort((a, b) => (group.order ? group.order.indexOf(a) - group.order.indexOf(b) : counts.get(b) - counts.get(a) || (a < b ? -1 : 1)));
      return el("div", {class: "bar", "data-group": group.name}, el("span", {class: "label"}, group.name),
        names.slice(0, 40).map((value) => el("button", {type: "button", class: "chip", "data-value": value, "aria-pressed": String(wanted.has(value)),
          onclick: () => toggle(group.name, value)}, `${value} (${COUNT(counts.get(value))})`)));
    });
    const ranges = [...state.ranges].map(([name, {low, high}]) => el("button", {type: "button", class: "chip", "aria-pressed": "true",
      onclick: () => { state.ranges.delete(name); state.page = 0; draw(); if (options.changed) options.changed(); }}, `${name} ${COUNT(low)} to ${COUNT(high)} ✕`));
    const focused = document.activeElement && document.activeElement.closest ? document.activeElement.closest("[data-value]") : null;
    const key = focused && chips.contains(focused) ? [focused.closest("[data-group]").dataset.group, focused.dataset.value] : null;
    chips.replaceChildren(...rows.filter(Boolean), ...(ranges.length ? [el("div", {class: "bar"}, el("span", {class: "label"}, "ranges"), ranges)] : []));
    if (key) for (const button of chips.querySelectorAll("[data-value]")) {
      if (button.dataset.value === key[1] && button.closest("[data-group]").dataset.group === key[0]) button.focus();
    }
  }
  function draw(top) {
    const kept = found();
    const pages = Math.max(1, Math.ceil(kept.length / PER_PAGE));
    state.page = Math.min(state.page, pages - 1);
    drawChips();
    count.textContent = `${COUNT(kept.length)} of ${COUNT(cards.length)} samples`;
    box.replaceChildren(...kept.slice(state.page * PER_PAGE, (state.page + 1) * PER_PAGE).map(options.render));
    const go = (page) => () => { state.page = page; draw(true); };
    pager.replaceChildren(
      el("button", {type: "button", disabled: state.page === 0, onclick: go(state.page - 1)}, "previous"),
      `page ${state.page + 1} of ${pages}`,
      el("button", {type: "button", disabled: state.page >= pages - 1, onclick: go(state.page + 1)}, "next"));
    if (top) element.scrollIntoView();
  }
  function toggle(group, value) {
    const wanted = state.picked.get(group) || new Set();
    if (!wanted.delete(value)) wanted.add(value);
    state.picked.set(group, wanted);
    state.page = 0;
    draw();
  }
  function range(name, value, low, high) {
    const now = state.ranges.get(name);
    if (now && now.low === low && now.high === high) state.ranges.delete(name);
    else state.ranges.set(name, {value, low, high});
    state.page = 0;
    draw();
    if (options.changed) options.changed();
  }
  function move(step) {
    const all = [...box.children];
    const at = all.findIndex((item) => item.contains(document.activeElement));
    const next = all[at < 0 ? (step > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, at + step))];
    if (next) { next.focus(); next.scrollIntoView({block: "nearest"}); }
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const turn = {n: 1, p: -1}[event.key];
    if (event.key === "j" || event.key === "k") move(event.key === "j" ? 1 : -1);
    else if (event.key === "/") search.focus();
    else if (turn && state.page + turn >= 0) { state.page += turn; draw(true); }
    else return;
    event.preventDefault();
  });
  const element = el("section", {"aria-label": "samples"},
    el("div", {class: "toolbar"}, el("div", {class: "bar"}, search, el("label", {class: "small"}, "sort ", sort), count, themeButton()), chips),
    el("p", {class: "faint small"}, KEYS), box, pager);
  draw();
  return {element, toggle, range, picked: (name) => state.ranges.get(name), refresh: () => draw()};
}

/** The text that a search looks through: origin, task, dialogue, names of images, chips. */
function searchText(item) {
  const parts = [item.origin, item.task || "", item.raw || ""];
  for (const entry of item.turns || []) for (const part of entry.parts) if (part.s && !part.m) parts.push(part.s);
  for (const image of item.images || []) parts.push(image.name);
  for (const [text] of item.chips || []) parts.push(text);
  parts.push(...(item.problems || []));
  return parts.join("\n");
}
