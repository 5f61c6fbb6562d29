// The page of a run that trains: loads its data file again and again, since a page opened as a file can load scripts.

const EVERY_MS = 3000;
let liveReport = () => {};

(() => {
  const data = pageData();
  const main = document.getElementById("main");
  const status = el("div", {role: "status"});
  const look = el("section", {});
  const charts = el("div", {class: "grid"});
  let now = null, longest = 1000, before = 0;

  const ago = (ms) => (ms < 90000 ? `${Math.max(0, Math.round(ms / 1000))} s` : ms < 5400000 ? `${Math.round(ms / 60000)} min` : `${(ms / 3600000).toFixed(1)} h`);
  function drawStatus() {
    if (!now) { status.replaceChildren(el("span", {class: "status"}, "waiting for the run's data file"), ` ${data.file}`); return; }
    const age = Date.now() - now.updated;
    const silent = now.state === "running" && age > Math.max(60000, 10 * longest);
    const state = silent ? "stopped" : now.state;
    const words = silent ? `stopped: no sign of life for ${ago(age)}; go on with --resume` : now.message || now.state;
    status.replaceChildren(el("span", {class: `status ${state}`}, words),
      ` step ${COUNT(now.step)} of ${COUNT(now.steps)} · last update ${new Date(now.updated).toLocaleString()} (${ago(age)} ago)`);
  }

  const chips = (item) => {
    const seen = (now ? now.showings : []).map((showing) => showing.answers[item.place]).filter(Boolean);
    if (!seen.length) return ["not answered yet"];
    const right = seen.map((answer) => answer.right), last = right[right.length - 1];
    const found = [];
    if (!right.includes(true)) found.push("never right");
    else if (last && right[0]) found.push("right from the start");
    else if (last) found.push("became right");
    if (!last && right.includes(true)) found.push("became wrong");
    if (!seen[seen.length - 1].finished) found.push("cut off");
    return found;
  };
  const extra = (item) => {
    const rows = [el("dt", {}, "expected"), el("dd", {}, item.reference)];
    let same = null;
    for (const showing of now ? now.showings : []) {
      const answer = showing.answers[item.place];
      if (!answer) continue;
      const text = JSON.stringify(answer.difference);
      if (text === same) { rows.push(el("dt", {}, `step ${COUNT(showing.step)}`), el("dd", {class: "faint"}, "the same")); continue; }
      same = text;
      rows.push(el("dt", {}, `step ${COUNT(showing.step)}`), el("dd", {}, difference(answer.difference), " ",
        el("span", {class: `chip ${answer.right ? "good" : "bad"}`}, answer.right ? "right" : "wrong"),
        answer.finished ? null : el("span", {class: "chip warn"}, "cut off")));
    }
    return el("dl", {class: "answers"}, rows);
  };
  data.cards.forEach((item, place) => { item.place = place; });
  const list = data.cards.length ? cardList(data.cards, {
    groups: [{name: "answers", values: chips}, {name: "task", values: (item) => (item.task ? [item.task] : [])}],
    render: (item) => card({...item, state: chips(item).some((name) => /right$|start$/.test(name) && name !== "never right") ? "good" : now && now.showings.length ? "bad" : ""}, {factor: data.factor, extra}),
    sorts: {"as chosen": (item) => item.place}, search: (item) => [searchText(item), item.reference].join("\n"),
  }) : null;

  main.append(status, look, el("h2", {}, "Curves"), charts);
  if (list) main.append(el("h2", {}, "Answers over steps"), list.element); else main.append(el("div", {class: "bar"}, themeButton()));
  main.append(el("details", {}, el("summary", {}, "Settings"), table(["setting", "value"], Object.entries(data.about), "settings")));

  liveReport = (found) => {
    if (now && now.updated === found.updated) return;
    if (now && found.step > before) longest = Math.max(longest, Math.min(600000, found.updated - now.updated));
    before = found.step;
    const answers = (item) => JSON.stringify(item ? item.showings : null);
    const fresh = answers(now) !== answers(found);
    now = found;
    drawStatus();
    const notes = [...found.look, ...(found.verdict ? [found.verdict] : [])];
    look.replaceChildren(...(notes.length ? [el("h2", {}, "What to look at"), el("ul", {class: "plain"}, notes.map((text) => el("li", {}, text)))] : []));
    charts.replaceChildren(...curveGroups(found.curves).map(([title, keys]) =>
      curve(title, keys.map((key) => ({name: key, points: found.curves[key], dots: DOTS.test(key)})))));
    if (list && fresh && !document.querySelector("dialog[open]")) list.refresh();
  };
  function load() {
    drawStatus();
    if (now && now.state !== "running") return;
    const script = el("script", {src: `${data.file}?${Date.now()}`});
    const done = () => { script.remove(); setTimeout(load, EVERY_MS); };
    script.addEventListener("load", done);
    script.addEventListener("error", done);
    document.head.append(script);
  }
  load();
})();
