"use strict";
// Light or dark: the reader's system decides until the button is pressed; the choice lasts as long as the page.
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

// Copying what is in a box; where the browser forbids it, the text is selected instead.
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.nextElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}

// Curves: a crosshair at the nearest point, and what each curve has there.
for (const svg of document.querySelectorAll("svg[data-hover]")) {
  const { top, bottom, x: axis, lines } = JSON.parse(svg.dataset.hover);
  const places = [...new Set(lines.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
  if (!places.length) continue;
  const cross = document.createElementNS("http://www.w3.org/2000/svg", "line");
  cross.setAttribute("class", "cross");
  cross.setAttribute("y1", top);
  cross.setAttribute("y2", bottom);
  const tip = document.createElement("div");
  tip.className = "tip";
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const scale = box.width / svg.viewBox.baseVal.width;
    const wanted = (event.clientX - box.left) / scale;
    const at = places.reduce((best, place) => (Math.abs(place - wanted) < Math.abs(best - wanted) ? place : best));
    cross.setAttribute("x1", at);
    cross.setAttribute("x2", at);
    tip.replaceChildren();
    for (const line of lines) {
      const point = line.points.find((each) => each[0] === at);
      if (!point) continue;
      if (!tip.childElementCount) tip.append(row("", `${axis} ${point[3]}`, ""));
      tip.append(row(`var(--${line.colour})`, line.label, point[2]));
    }
    svg.append(cross);
    svg.parentElement.append(tip);
    const left = at * scale + 14 + tip.offsetWidth > box.width ? at * scale - 14 - tip.offsetWidth : at * scale + 14;
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${box.top - svg.parentElement.getBoundingClientRect().top + top * scale}px`;
  };
  const hide = () => {
    cross.remove();
    tip.remove();
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}

function row(colour, label, value) {
  const line = document.createElement("div");
  if (colour) {
    const dot = document.createElement("i");
    dot.style.background = colour;
    line.append(dot);
  }
  const words = document.createElement("b");
  words.textContent = value;
  line.append(`${label} `, words);
  return line;
}
