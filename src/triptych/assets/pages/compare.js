// The page of `triptych report`: curves of several runs over each other, settings that differ, answers side by side.

(() => {
  const data = pageData();
  const main = document.getElementById("main");
  const names = data.runs.map((run) => run.name);

  main.append(table(["result", ...names], data.results, "results"));
  if (data.runs.length > 1) {
    main.append(el("h2", {}, "Settings that differ"));
    main.append(data.differ.length ? table(["setting", ...names], data.differ, "settings that differ") : el("p", {}, "none"));
  }

  const keys = Object.fromEntries(data.curves.flatMap((curves) => Object.keys(curves)).map((key) => [key, true]));
  const charts = curveGroups(keys).flatMap(([, group]) => group).map((key) =>
    curve(key, names.map((name, number) => ({name, points: data.curves[number][key] || [], dots: DOTS.test(key)}))));
  main.append(el("h2", {}, "Curves"), el("div", {class: "grid"}, charts));

  const mark = (answer) => (answer ? (answer.right ? "right" : "wrong") : "not shown");
  const outcome = (item) => {
    const seen = item.answers.filter(Boolean);
    const right = seen.filter((answer) => answer.right).length;
    if (!seen.length) return [];
    const found = [right === seen.length ? "right in all" : right ? "right in some" : "right in none"];
    if (seen.length > 1) found.push(new Set(seen.map((answer) => answer.text)).size > 1 ? "answers differ" : "same answer");
    if (seen.some((answer) => !answer.finished)) found.push("cut off");
    return found;
  };
  const extra = (item) => {
    const rows = [el("dt", {}, "expected"), el("dd", {}, item.reference)];
    item.answers.forEach((answer, number) => {
      if (!answer) return;
      rows.push(el("dt", {}, names[number]), el("dd", {}, difference(answer.difference), " ",
        el("span", {class: `chip ${answer.right ? "good" : "bad"}`}, mark(answer)),
        answer.finished ? null : el("span", {class: "chip warn"}, "cut off"),
        el("div", {class: "faint small"}, `step ${COUNT(data.runs[number].step)}, ${COUNT(answer.tokens)} tokens`)));
    });
    return el("dl", {class: "answers"}, rows);
  };
  for (const item of data.cards) item.state = {"right in all": "good", "right in some": "warn", "right in none": "bad"}[outcome(item)[0]] || "";
  const groups = [{name: "answers", values: outcome}];
  names.forEach((name, number) => groups.push({name, values: (item) => [mark(item.answers[number])], order: ["right", "wrong", "not shown"]}));
  groups.push({name: "task", values: (item) => (item.task ? [item.task] : [])});
  main.append(el("h2", {}, "The same samples side by side"), el("p", {class: "faint"}, data.shown));
  if (!data.cards.length) { main.append(el("div", {class: "bar"}, themeButton())); return; }
  main.append(cardList(data.cards, {
    groups, render: (item) => card({...item, ids: null}, {factor: data.factor, extra}),
    sorts: {"shared by most runs": (item) => item.id, "right in fewest": (item) => item.answers.filter((answer) => answer && answer.right).length},
    search: (item) => [searchText(item), item.reference, ...item.answers.map((answer) => (answer ? answer.text : ""))].join("\n"),
  }).element);
})();
