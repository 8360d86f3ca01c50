"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const state = { raw: true, log: false };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const merge = (base, extra) => {
    const out = { ...base };
    for (const [key, value] of Object.entries(extra)) {
      const nested = value && typeof value === "object" && !Array.isArray(value) && out[key];
      out[key] = nested ? merge(out[key], value) : value;
    }
    return out;
  };
  // "@c1" anywhere in a figure stands for the palette's colour of that name, so charts follow the theme.
  const paint = (value) => {
    if (typeof value === "string") return (value[0] === "@" && css(value.slice(1))) || value;
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map(paint);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, paint(inner)]));
    }
    return value;
  };
  const axis = { gridcolor: "@grid", linecolor: "@line", zeroline: false, automargin: true, exponentformat: "e" };
  const base = {
    margin: { l: 46, r: 10, t: 10, b: 34 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "inherit", size: 11.5, color: "@muted" }, hovermode: "x unified",
    hoverlabel: { bgcolor: "@card", bordercolor: "@line", font: { color: "@ink", size: 11.5 } },
    legend: { orientation: "h", x: 1, xanchor: "right", y: 1.02, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" },
    xaxis: { ...axis, showgrid: false, title: { text: "step", standoff: 6, font: { size: 11 } }, nticks: 7 },
    yaxis: { ...axis, nticks: 6 },
  };
  const draw = (node) => {
    const figure = figures[node.id];
    const traces = figure.data.filter((trace) => state.raw || trace.meta !== "raw");
    const layout = merge(base, figure.layout);
    if (layout.showlegend) layout.margin = { ...layout.margin, t: 26 };
    if (state.log && figure.loggable) layout.yaxis = { ...layout.yaxis, type: "log", dtick: undefined };
    return Plotly.react(node, paint(traces), paint(layout), { displayModeBar: false, responsive: true });
  };
  const shown = () => [...document.querySelectorAll(".chart")].filter((node) => node.clientWidth > 0);
  const drawAll = () => Promise.all(shown().map(draw));
  drawAll().then(() => { document.documentElement.dataset.drawn = "yes"; });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  // A picture or video that does not load says so, whatever the browser would show in its place.
  const settle = (node, loaded) => {
    node.dataset.loaded = loaded ? "yes" : "no";
    if (loaded || node.classList.contains("broken")) return;
    node.classList.add("broken");
    const note = document.createElement("span");
    note.className = "badge bad";
    note.textContent = "does not load";
    node.after(note);
  };
  for (const image of document.images) image.decode().then(() => settle(image, true), () => settle(image, false));
  for (const video of document.querySelectorAll("video")) {
    video.addEventListener("loadeddata", () => settle(video, true));
    video.addEventListener("error", () => settle(video, false));
    if (video.error) settle(video, false);
    else if (video.readyState > 1) settle(video, true);
  }
  for (const box of document.querySelectorAll("input[data-play]")) {
    box.addEventListener("change", () => {
      for (const video of document.querySelectorAll("video")) box.checked ? video.play().catch(() => {}) : video.pause();
    });
  }
  for (const node of document.querySelectorAll("details")) node.addEventListener("toggle", drawAll);
  for (const box of document.querySelectorAll("input[data-state]")) {
    box.addEventListener("change", () => { state[box.dataset.state] = box.checked; drawAll(); });
  }
})();
