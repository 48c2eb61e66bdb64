"use strict";

const dataOf = (figure) =>
  JSON.parse(figure.querySelector('script[type="application/json"]').textContent);

const short = (value) =>
  Math.abs(value) >= 100 ? Math.round(value).toLocaleString("en") : Number(value.toPrecision(4)).toString();

function nearest(points, x) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] > x) high = middle; else low = middle;
  }
  return x - points[low][0] < points[high][0] - x ? points[low] : points[high];
}

function row(name, value) {
  const line = document.createElement("div");
  for (const text of [name, value]) {
    const cell = document.createElement(text === value ? "b" : "span");
    cell.textContent = text;
    line.append(cell);
  }
  return line;
}

for (const figure of document.querySelectorAll("figure.chart")) {
  const { x: [low, high], lines } = dataOf(figure);
  const area = figure.querySelector(".area");
  const cursor = figure.querySelector(".cursor"), tip = figure.querySelector(".tip");
  area.addEventListener("pointermove", (event) => {
    const box = area.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const found = lines.map((line) => nearest(line.points, low + share * (high - low)));
    const step = found[0][0], place = 100 * (step - low) / (high - low);
    cursor.style.left = `${place}%`;
    tip.replaceChildren(row("step", step.toLocaleString("en")),
      ...lines.map((line, i) => row(line.name, short(found[i][1]))));
    tip.style.left = place < 50 ? `calc(${place}% + 8px)` : "auto";
    tip.style.right = place < 50 ? "auto" : `calc(${100 - place}% + 8px)`;
    cursor.hidden = tip.hidden = false;
  });
  area.addEventListener("pointerleave", () => { cursor.hidden = tip.hidden = true; });
}

for (const figure of document.querySelectorAll("figure.heat")) {
  const slider = figure.querySelector("input");
  if (!slider) continue;
  const { steps, frames } = dataOf(figure);
  const cells = [...figure.querySelectorAll(".cell")], peaks = [...figure.querySelectorAll(".peak")];
  slider.addEventListener("input", () => {
    const frame = frames[slider.value], experts = frame[0].length;
    figure.querySelector(".heat-step").textContent = steps[slider.value].toLocaleString("en");
    frame.forEach((loads, layer) => {
      peaks[layer].textContent = short(Math.max(...loads));
      loads.forEach((load, expert) => {
        const cell = cells[layer * experts + expert];
        cell.className = `cell ${load > 1 ? "above" : "below"}`;
        cell.style.setProperty("--v", `${Math.min(100, Math.abs(load - 1) * 100)}%`);
        cell.title = `layer ${layer}, expert ${expert}: ${short(load)} × mean`;
      });
    });
  });
}

const gallery = document.querySelector("#samples .samples");
if (gallery) {
  const PAGE = Number(gallery.dataset.page ?? 8);
  const section = document.querySelector("#samples");
  const items = [...gallery.children];
  const task = section.querySelector("select"), search = section.querySelector('[type="search"]');
  const more = section.querySelector(".more"), shown = section.querySelector(".shown");
  let limit = PAGE;
  const show = () => {
    const change = section.querySelector('[name="change"]:checked').value;
    const text = search.value.toLowerCase();
    const fits = items.filter((item) =>
      (!change || item.dataset.change === change) && (!task.value || item.dataset.name === task.value) &&
      (!text || item.textContent.toLowerCase().includes(text)));
    for (const item of items) item.hidden = true;
    for (const item of fits.slice(0, limit)) item.hidden = false;
    more.hidden = fits.length <= limit;
    shown.textContent = `${Math.min(limit, fits.length)} of ${fits.length} shown`;
  };
  const restart = () => { limit = PAGE; show(); };
  for (const control of section.querySelectorAll(".choice input, .choice select"))
    control.addEventListener("input", restart);
  more.addEventListener("click", () => { limit += PAGE; show(); });
  show();
}
