// The page of `triptych eval`: scores, right and wrong before and after, answers beside their images.

(() => {
  const data = pageData();
  const main = document.getElementById("main");
  const models = data.models;
  const percent = (mean) => (mean ? `${(100 * mean.value).toFixed(1)}%` : "-");
  const interval = (mean) => (mean ? `${(100 * mean.low).toFixed(1)} to ${(100 * mean.high).toFixed(1)}` : "");
  const state = {before: 0, after: models.length - 1};

  const cells = (row) => [row.name, row.scorer, COUNT(row.samples),
    ...row.means.map((mean) => el("span", {title: `95% interval: ${interval(mean)}`}, percent(mean), el("span", {class: "faint small"}, ` ${interval(mean)}`)))];
  main.append(el("p", {class: "faint"}, data.about));
  for (const kind of new Set(data.scores.map((row) => row.group))) {
    const made = table([kind, "scorer", "samples", ...models], data.scores.filter((row) => row.group === kind).map(cells), `scores by ${kind}`);
    main.append(kind === "task" ? made : el("details", {}, el("summary", {}, `by ${kind}`), made));
  }

  const cell = (item) => {
    const [before, after] = [item.answers[state.before], item.answers[state.after]];
    if (!before || !after) return "not answered by both";
    return `${before.right ? "right" : "wrong"} → ${after.right ? "right" : "wrong"}`;
  };
  const CELLS = ["wrong → right", "right → wrong", "wrong → wrong", "right → right", "not answered by both"];
  const outcome = (item) => (item.answers[state.after] ? [item.answers[state.after].right ? "right" : "wrong", ...(item.answers[state.after].finished ? [] : ["cut off"])] : ["no answer"]);

  const extra = (item) => {
    const rows = [el("dt", {}, "expected"), el("dd", {}, item.reference)];
    item.answers.forEach((answer, number) => {
      if (!answer) return;
      const scores = Object.entries(answer.scores).map(([name, value]) => `${name} ${value === null ? "-" : Number(value.toFixed(3))}`).join(", ");
      rows.push(el("dt", {}, models.length > 1 ? models[number] : "answer"),
        el("dd", {}, difference(answer.difference), answer.finished ? null : el("span", {class: "chip warn"}, "cut off"),
          el("div", {class: "faint small"}, `${answer.right ? "right" : "wrong"}: ${scores}`)));
    });
    return el("dl", {class: "answers"}, rows);
  };
  for (const item of data.cards) item.state = item.answers[state.after] && item.answers[state.after].right ? "good" : "bad";
  const groups = [{name: "answer", values: outcome, order: ["wrong", "right", "cut off", "no answer"]}];
  if (models.length > 1) groups.push({name: "change", values: (item) => [cell(item)], order: CELLS});
  groups.push({name: "task", values: (item) => (item.task ? [item.task] : [])});
  for (const field of data.fields) groups.push({name: field, values: (item) => (item.fields[field] === undefined ? [] : [item.fields[field]])});
  const worst = (item) => { const answer = item.answers[state.after]; const scores = answer ? Object.values(answer.scores).filter((value) => value !== null) : []; return scores.length ? scores[0] : -1; };
  const list = cardList(data.cards, {
    groups, render: (item) => card(item, {factor: data.factor, extra}),
    sorts: {"worst first": worst, "best first": (item) => -worst(item), "input order": (item) => item.id, "longest answer": (item) => -(item.answers[state.after] ? item.answers[state.after].length : 0)},
    search: (item) => [searchText(item), item.reference, ...item.answers.map((answer) => (answer ? answer.text : ""))].join("\n"),
  });

  if (models.length > 1) {
    const box = el("div", {class: "panel"});
    const choose = (name) => {
      const select = el("select", {"aria-label": name, onchange: () => { state[name] = Number(select.value); for (const item of data.cards) item.state = item.answers[state.after] && item.answers[state.after].right ? "good" : "bad"; draw(); list.refresh(); }},
        models.map((model, number) => el("option", {value: String(number), selected: number === state[name]}, model)));
      return select;
    };
    const counts = (before, after) => {
      const sums = Object.fromEntries(CELLS.map((name) => [name, 0]));
      for (const [key, found] of Object.entries(data.cells[`${before},${after}`] || {})) sums[key] = found;
      return sums;
    };
    const four = el("div");
    const draw = () => {
      const sums = counts(state.before, state.after);
      const open = (name) => el("button", {type: "button", "data-cell": name, onclick: () => { list.toggle("change", name); list.element.scrollIntoView(); }}, COUNT(sums[name]));
      four.replaceChildren(table(["before", "wrong after", "right after"], [
        ["wrong", open("wrong → wrong"), open("wrong → right")],
        ["right", open("right → wrong"), open("right → right")]], "right and wrong before and after"));
    };
    box.append(el("h3", {}, "Before and after"), el("div", {class: "bar"}, "before ", choose("before"), " after ", choose("after")), four,
      el("p", {class: "faint small"}, "A number opens its samples."));
    draw();
    main.append(el("div", {class: "grid", style: "margin-top: 1rem"}, box));
  }
  main.append(el("h2", {}, "Answers"), data.left_out ? el("p", {class: "faint"}, data.left_out) : "", list.element);
})();
