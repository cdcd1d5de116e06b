// The answers on the picture and in words. Runs once, in gr.HTML's js_on_load, which supplies element, trigger, props
// and watch. A value is {turn, picture, summary, runs}, {alert} or {ready}; see view.py. Text from people only ever goes into
// textContent and attributes.
const find = (name) => element.querySelector(name);
const live = { turn: 0, picture: "", hidden: new Set(), size: 0 };
const KINDS = [["json", "JSON"], ["coco", "COCO RLE"], ["svg", "SVG"], ["mask", "Mask PNG"], ["cutout", "Cut-out PNG"]];
const SVG = "http://www.w3.org/2000/svg";

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function draw(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

const score = (answer) => (answer.score === null ? "" : answer.score.toFixed(2));
const label = (answer) => answer.text + (answer.score === null ? "" : " (" + score(answer) + ")");

// The picture with its shapes -------------------------------------------------------------------------------------
function figure(run, number) {
  const [height, width] = run.size;
  const box = make("div", "vs-picture");
  const found = run.answers.filter((answer) => answer.paths.length).map(label);
  const svg = draw("svg", { viewBox: "0 0 " + width + " " + height, role: "img" });
  svg.setAttribute("aria-label", run.name + ", with the outlines of " + (found.join(", ") || "nothing"));
  svg.append(draw("image", { href: live.picture, width, height, preserveAspectRatio: "none" }));
  run.answers.forEach((answer, k) => {
    if (!answer.paths.length) return;
    const group = draw("g", { class: "vs-shape", "data-run": number, "data-query": k, "data-label": label(answer) });
    group.style.setProperty("--paint", answer.color);
    const d = answer.paths.join(" ");
    for (const part of ["vs-rim", "vs-line", "vs-fill"]) group.append(draw("path", { class: part, d }));
    svg.append(group);
  });
  box.append(svg);
  const taken = [];
  run.answers.forEach((answer, k) => {
    if (!answer.spot) return;
    const near = taken.filter((spot) => Math.hypot(spot[0] - answer.spot[0], spot[1] - answer.spot[1]) < width / 20);
    taken.push(answer.spot);
    const badge = make("span", "vs-badge", String(k + 1));
    badge.setAttribute("aria-hidden", "true");
    badge.dataset.run = number;
    badge.dataset.query = k;
    badge.style.left = (100 * answer.spot[0]) / width + "%";
    badge.style.top = (100 * answer.spot[1]) / height + "%";
    badge.style.marginLeft = 26 * near.length + "px";
    badge.style.background = answer.color;
    badge.style.color = answer.ink;
    box.append(badge);
  });
  const tip = make("div", "vs-tip");
  tip.setAttribute("aria-hidden", "true");
  box.append(tip);
  return box;
}

// The list of answers ---------------------------------------------------------------------------------------------
function row(answer, k, run, number) {
  const item = make("li", "vs-row vs-" + answer.status);
  const swatch = make("span", "vs-swatch", String(k + 1));
  if (answer.paths.length) {
    swatch.style.background = answer.color;
    swatch.style.color = answer.ink;
  }
  swatch.setAttribute("aria-hidden", "true");
  const words = make("span", "vs-words");
  words.append(make("span", "vs-text", answer.text), make("span", "vs-says", [answer.says, answer.overlap].filter(Boolean).join(" · ")));
  if (answer.score !== null) {
    const bar = make("span", "vs-bar");
    bar.setAttribute("aria-hidden", "true");
    bar.style.setProperty("--score", answer.score);
    bar.style.setProperty("--threshold", run.threshold);
    words.append(bar);
  }
  const points = make("span", "vs-score");
  if (answer.score !== null) points.append(make("span", "vs-unseen", "score "), score(answer));
  if (answer.paths.length) {
    const button = make("button", "vs-toggle");
    button.type = "button";
    button.dataset.run = number;
    button.dataset.query = k;
    button.title = "Show or hide this answer";
    button.append(swatch, words, points, make("span", "vs-eye"));
    item.append(button);
  } else {
    const line = make("div", "vs-toggle");
    line.append(swatch, words, points);
    item.append(line);
  }
  return item;
}

function panel(run, number, alone) {
  const part = make("article", "vs-run");
  part.setAttribute("aria-label", "Answers of " + run.model);
  const head = make("header", "vs-head");
  head.append(make("h2", "vs-model", run.model), make("span", "vs-timing", run.timing));
  const side = make("div", "vs-side");
  const list = make("ol", "vs-list");
  run.answers.forEach((answer, k) => list.append(row(answer, k, run, number)));
  side.append(list);
  if (run.note) side.append(make("p", "vs-note", run.note));
  const save = make("div", "vs-save");
  save.setAttribute("role", "group");
  save.setAttribute("aria-label", "Download what is shown of " + run.model);
  save.append(make("span", "vs-hint", "Download what is shown"));
  for (const [kind, text] of KINDS) {
    const button = make("button", "vs-button", text);
    button.type = "button";
    button.dataset.save = kind;
    button.dataset.run = number;
    save.append(button);
  }
  side.append(save);
  part.append(head, figure(run, number), side);
  part.classList.toggle("vs-alone", alone);
  return part;
}

// What is hidden --------------------------------------------------------------------------------------------------
function refresh() {
  for (const node of element.querySelectorAll("[data-query]")) {
    const off = live.hidden.has(node.dataset.run + ":" + node.dataset.query);
    node.classList.toggle("vs-off", off);
    if (node.tagName === "BUTTON") node.setAttribute("aria-pressed", String(!off));
  }
}

function toggle(node) {
  const key = node.dataset.run + ":" + node.dataset.query;
  if (!live.hidden.delete(key)) live.hidden.add(key);
  refresh();
}

function highlight(query) {
  for (const node of element.querySelectorAll("[data-query]")) {
    node.classList.toggle("vs-lit", query !== null && node.dataset.query === query);
    node.classList.toggle("vs-dim", query !== null && node.dataset.query !== query && node.tagName !== "BUTTON");
  }
}

function point(event, shape) {
  const box = shape.closest(".vs-picture");
  const tip = box.querySelector(".vs-tip");
  const frame = box.getBoundingClientRect();
  tip.textContent = shape.dataset.label;
  tip.classList.add("vs-on");
  const left = Math.min(event.clientX - frame.left + 12, frame.width - tip.offsetWidth - 4);
  tip.style.left = Math.max(4, left) + "px";
  tip.style.top = Math.max(4, event.clientY - frame.top - tip.offsetHeight - 10) + "px";
}

element.addEventListener("pointermove", (event) => {
  const shape = event.target.closest(".vs-shape");
  for (const tip of element.querySelectorAll(".vs-tip")) tip.classList.remove("vs-on");
  if (shape) point(event, shape);
  const over = event.target.closest("[data-query]");
  highlight(over ? over.dataset.query : null);
});
element.addEventListener("pointerleave", () => {
  for (const tip of element.querySelectorAll(".vs-tip")) tip.classList.remove("vs-on");
  highlight(null);
});
element.addEventListener("focusin", (event) => {
  const row = event.target.closest("[data-query]");
  highlight(row ? row.dataset.query : null);
});
element.addEventListener("focusout", () => highlight(null));

element.addEventListener("click", (event) => {
  const save = event.target.closest("[data-save]");
  if (save) {
    const shown = [];
    for (let k = 0; k < live.size; k++) if (!live.hidden.has(save.dataset.run + ":" + k)) shown.push(k);
    trigger("save", { run: Number(save.dataset.run), kind: save.dataset.save, shown });
    return;
  }
  const node = event.target.closest("[data-query]");
  if (node) toggle(node);
});

// New values ------------------------------------------------------------------------------------------------------
function say(text) {
  find(".vs-status").textContent = text;
}

function render() {
  const value = props.value;
  if (!value) return;
  element.classList.remove("vs-busy");
  if (value.alert) {
    find(".vs-alert").textContent = value.alert;
    say("");
    return;
  }
  if (value.ready) {
    find(".vs-alert").textContent = "";
    say(value.ready);
    return;
  }
  if (value.turn < live.turn) return; // a slider's answer that a new run has overtaken
  find(".vs-alert").textContent = "";
  const fresh = value.turn !== live.turn;
  live.turn = value.turn;
  live.size = Math.max(...value.runs.map((run) => run.answers.length));
  if (value.picture) live.picture = value.picture;
  if (fresh) live.hidden.clear();
  find(".vs-empty").hidden = true;
  const runs = find(".vs-runs");
  runs.classList.toggle("vs-two", value.runs.length > 1);
  runs.replaceChildren(...value.runs.map((run, number) => panel(run, number, value.runs.length === 1)));
  refresh();
  say(value.summary);
  if (fresh) {
    const start = document.getElementById("vp-dials") || element;
    const top = start.getBoundingClientRect().top;
    const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    const away = top < -100 || top > 0.5 * window.innerHeight;
    if (away) start.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
  }
}

watch("value", render);
window.addEventListener("vlseg-busy", () => {
  element.classList.add("vs-busy");
  find(".vs-alert").textContent = "";
  say("Looking …");
});
window.addEventListener("vlseg-opacity", (event) => element.style.setProperty("--opacity", event.detail));
