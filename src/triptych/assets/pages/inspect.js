// The page of `triptych inspect`.

(() => {
  const data = pageData();
  const main = document.getElementById("main");
  const heads = ["split", "records", "samples", "problems", "images", "tokens", "trained"];
  const row = (name, item) => [name, item.records, item.ok, item.problems + item.dropped, item.images, item.tokens, item.supervised].map((cell) => (typeof cell === "number" ? COUNT(cell) : cell));
  const splits = Object.entries(data.totals.splits).map(([name, item]) => row(name, item));
  if (splits.length > 1) splits.push(row("all", data.totals.all));
  main.append(el("p", {class: "faint"}, data.shown), table(heads, splits, "totals"));

  const context = {vocabulary: data.vocabulary, factor: data.factor,
    extra: (item) => (item.pairs ? el("ul", {class: "plain small"}, item.pairs.map((text) => el("li", {}, text))) : null)};
  const groups = [
    {name: "kind", values: (item) => item.kinds},
    {name: "twice", values: (item) => (item.chips || []).map((chip) => chip[0]).filter((text) => text.startsWith("leak: "))},
    {name: "split", values: (item) => (item.source ? [item.source] : [])},
    {name: "task", values: (item) => (item.task ? [item.task] : [])},
  ];
  const value = (name) => (item) => (item.values[name] === undefined ? -1 : item.values[name]);
  const charts = el("div", {class: "grid"});
  const list = cardList(data.cards, {
    groups, search: searchText, render: (item) => card(item, context), changed: () => drawCharts(),
    sorts: {"input order": (item) => (item.id < 0 ? item.id : item.id), "longest first": (item) => -value("tokens")(item), "most images": (item) => -value("images")(item),
      "most shrunk": (item) => (item.values.kept === undefined ? 101 : item.values.kept), "least trained": (item) => (item.values.trained === undefined ? 1e9 : item.values.trained)},
  });
  function drawCharts() {
    charts.replaceChildren(...data.histograms.map((bins) => histogram(bins.title, bins,
      (low, high) => list.range(bins.title, value(bins.title), low, high),
      (low, high) => { const now = list.picked(bins.title); return now && now.low === low && now.high === high; }, bins.unit)));
  }
  drawCharts();
  main.append(el("h2", {}, "Histograms"), el("p", {class: "faint small"}, "They count all samples; a bar filters the ones below."), charts);
  if (data.costs.rows.length) main.append(el("h2", {}, "Half and double max_pixels"), table(data.costs.heads, data.costs.rows, "cost of other limits"));
  const open = (group, name, count) => el("button", {type: "button", onclick: () => { list.toggle(group, name); list.element.scrollIntoView(); }}, COUNT(count));
  if (data.problems.length) {
    main.append(el("h2", {}, "Problems"), table(["code", "records", "what to do", "first"],
      data.problems.map((item) => [item.code, open("kind", item.code, item.count), el("span", {class: "small"}, item.advice), el("span", {class: "small faint"}, item.first)]), "problems"));
  }
  main.append(el("h2", {}, "What comes twice"));
  if (data.leaks.length) {
    main.append(table(["samples of", "have", "of", "samples"],
      data.leaks.map((item) => [item.split, item.words, item.within ? "the same split" : item.other, open("twice", item.chip, item.count)]), "what comes twice"));
    if (data.exclude.length) {
      const text = data.exclude.join("\n");
      const area = el("textarea", {readOnly: true, rows: 6, style: "width: 100%; background: var(--panel); color: inherit", "aria-label": "samples to exclude"});
      area.value = text;
      main.append(el("details", {}, el("summary", {}, `List of ${COUNT(data.exclude.length)} samples to exclude`), area,
        el("button", {type: "button", onclick: () => { area.select(); if (navigator.clipboard) navigator.clipboard.writeText(text).catch(() => {}); }}, "select and copy")));
    }
  } else main.append(el("p", {}, "No sample comes twice, and no image is in two splits."));
  main.append(el("h2", {}, "Samples"), list.element);
})();
