// Draws the charts of a report from the JSON beside it. Colours are CSS variables, so themes need no redraw.
"use strict";
(() => {
  const PARENT_COLOURS = 6;
  const DASHES = [null, "7 3", "2 3", "9 3 2 3", "4 2", "1 2"];
  const LABEL_WIDTH = 6.1;

  const tip = document.getElementById("tip");
  const data = document.getElementById("charts");
  let printing = false;
  const charts = data ? JSON.parse(data.textContent) : {};

  function number(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size === 0) return "0";
    const text =
      size >= 1e5 || size < 1e-3
        ? value.toExponential(2).replace("e+", "e")
        : value.toFixed(Math.max(0, 2 - Math.floor(Math.log10(size))));
    return text.replace("-", "\u2212");
  }

  function tick(value) {
    return Math.abs(value) >= 1e5 ? value.toExponential(0).replace("e+", "e") : String(+value.toPrecision(3)).replace("-", "\u2212");
  }

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function shorten(text, most) {
    return text.length <= most ? text : "…" + text.slice(text.length - most + 1);
  }

  // How a line looks: its role decides, and parents differ by dash as well as by colour.
  function look(series) {
    if (series.role === "merge") return { stroke: "var(--merge)", width: 2.25, dash: null };
    if (series.role === "base") return { stroke: "var(--base)", width: 1.5, dash: "5 4" };
    const index = series.index % PARENT_COLOURS;
    const dash = DASHES[(index + Math.floor(series.index / PARENT_COLOURS)) % DASHES.length];
    return { stroke: `var(--p${index})`, width: 1.75, dash };
  }

  // The tooltip

  function place(x, y) {
    const box = tip.getBoundingClientRect();
    const left = x + 14 + box.width > innerWidth ? x - box.width - 14 : x + 14;
    const top = y + 14 + box.height > innerHeight ? y - box.height - 14 : y + 14;
    tip.style.left = `${Math.max(4, Math.min(left, innerWidth - box.width - 4))}px`;
    tip.style.top = `${Math.max(4, top)}px`;
  }

  function show(title, rows, x, y) {
    tip.replaceChildren(
      element("b", {}, title),
      ...rows.map(([name, value]) => element("div", {}, element("i", {}, name), element("span", {}, value))),
    );
    tip.hidden = false;
    place(x, y);
  }

  function hide() {
    tip.hidden = true;
  }

  // Pointer and keys move the same focus: Plot finds the datum nearest to the pointer, keys move the pointer.
  function interactive(plot, label, describe, keyed) {
    const at = { x: 0, y: 0, index: -1 };
    for (const mark of plot.querySelectorAll("[aria-label]")) {
      mark.dataset.mark = mark.getAttribute("aria-label");
      mark.removeAttribute("aria-label");
    }
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `${label}. Arrow keys read the values.`);
    plot.setAttribute("tabindex", "0");
    plot.addEventListener("pointermove", (event) => {
      [at.x, at.y] = [event.clientX, event.clientY];
      if (!tip.hidden) place(at.x, at.y);
    });
    plot.addEventListener("input", () => {
      if (plot.value === null || plot.value === undefined) return hide();
      show(...describe(plot.value), at.x, at.y);
    });
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", () => plot.dispatchEvent(new PointerEvent("pointerleave")));
    plot.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return plot.dispatchEvent(new PointerEvent("pointerleave"));
      const next = keyed.step(at.index, event.key);
      if (next === null) return;
      event.preventDefault();
      at.index = next;
      const [px, py] = keyed.point(next);
      const box = plot.getBoundingClientRect();
      const scale = box.width / plot.viewBox.baseVal.width;
      const position = { clientX: box.left + px * scale, clientY: box.top + py * scale, pointerType: "pen" };
      [at.x, at.y] = [position.clientX, position.clientY];
      plot.dispatchEvent(new PointerEvent("pointerenter", position));
      plot.dispatchEvent(new PointerEvent("pointermove", position));
    });
    return plot;
  }

  function walk(length, back, forth) {
    return (index, key) => {
      if (key === "Home") return 0;
      if (key === "End") return length - 1;
      if (back.includes(key)) return Math.max(0, index - 1);
      if (forth.includes(key)) return Math.min(length - 1, index + 1);
      return null;
    };
  }

  // Profiles

  function finite(values) {
    return values.filter((value) => value !== null && value !== undefined);
  }

  // The shared vertical axis: every value of every panel and the rules; logarithmic over wide spans.
  function vertical(chart) {
    const values = [];
    for (const panel of chart.panels) {
      for (const one of [...panel.series, ...panel.bands])
        for (const row of [one.values, one.low, one.high]) if (row) values.push(...finite(row));
    }
    const bounds = values.concat(chart.rules.map((rule) => rule.value), chart.span || []);
    let [low, high] = [Math.min(...bounds), Math.max(...bounds)];
    const positive = values.filter((value) => value > 0);
    if (chart.low === 0 && chart.high === null && positive.length && high > 2.5 && high / Math.min(...positive) > 20)
      return { type: "log", domain: [Math.min(...positive) / 1.2, high * 1.2] };
    const pad = (high - low || Math.abs(high) || 1) * 0.08;
    low = chart.low !== null ? (low - pad < chart.low || low < 0.55 * high ? chart.low : low - pad) : low - pad;
    high = chart.high !== null ? chart.high : high + pad;
    return { type: "linear", domain: [low, high] };
  }

  function points(series) {
    return series.values.map((value, x) => ({
      x,
      y: value,
      low: series.low ? series.low[x] : null,
      high: series.high ? series.high[x] : null,
    }));
  }

  function lonely(rows, key) {
    return rows.filter(
      (row, n) => row[key] !== null && (rows[n - 1]?.[key] ?? null) === null && (rows[n + 1]?.[key] ?? null) === null,
    );
  }

  function bandMarks(band, count) {
    const rows = band.low.map((low, x) => ({ x, low, high: band.high[x] }));
    const fill = { fill: "var(--band)", fillOpacity: 0.42 };
    return [
      Plot.areaY(rows, { x: "x", y1: "low", y2: "high", ...fill }),
      Plot.rect(lonely(rows, "low"), {
        x1: (row) => row.x - (count === 1 ? 0.35 : 0.2),
        x2: (row) => row.x + (count === 1 ? 0.35 : 0.2),
        y1: "low",
        y2: "high",
        ...fill,
      }),
    ];
  }

  function seriesMarks(series, count, width_) {
    const rows = points(series);
    const { stroke, width, dash } = look(series);
    const marks = [];
    if (series.low && finite(series.low).length) {
      marks.push(
        Plot.areaY(rows, { x: "x", y1: "low", y2: "high", fill: stroke, fillOpacity: 0.2 }),
        Plot.ruleX(lonely(rows, "low"), { x: "x", y1: "low", y2: "high", stroke, strokeWidth: 1.5 }),
      );
    }
    marks.push(
      Plot.line(rows, { x: "x", y: "y", stroke, strokeWidth: width, strokeDasharray: dash, strokeLinejoin: "round" }),
      Plot.dot(count * 9 <= width_ ? rows.filter((row) => row.y !== null) : lonely(rows, "y"), {
        x: "x",
        y: "y",
        r: series.role === "merge" ? 2.75 : 2,
        fill: series.role === "base" ? "var(--bg)" : stroke,
        stroke,
        strokeWidth: 1.25,
      }),
    );
    return marks;
  }

  function ticks(count, width) {
    const most = Math.max(2, Math.floor(width / 34));
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((one) => count / one <= most) || 2000;
    return d3.range(0, count, step);
  }

  function ruleMarks(chart, first, count) {
    const edge = count === 1 ? 0.98 : count - 0.52;
    const decisive = finite(chart.panels[0].series[0].values);
    const [start, end] = [decisive[0], decisive.at(-1)];
    return chart.rules.flatMap((rule) => {
      const right = !(Math.abs(end - rule.value) < Math.abs(start - rule.value));
      const stroke = rule.threshold ? "var(--collapsed)" : "var(--muted)";
      const marks = [
        Plot.ruleY([rule.value], { stroke, strokeWidth: 1, strokeDasharray: rule.threshold ? "4 3" : null, strokeOpacity: 0.8 }),
      ];
      if (first && rule.threshold)
        marks.push(
          Plot.text([rule], {
            x: right ? edge : count === 1 ? -0.98 : -0.48,
            y: "value",
            text: "label",
            textAnchor: right ? "end" : "start",
            dy: -6,
            fill: stroke,
            stroke: "var(--bg)",
            strokeWidth: 4,
          }),
        );
      return marks;
    });
  }

  function profilePanel(chart, panel, number_, width, axis) {
    const count = chart.positions.length;
    const named = chart.depth === "module";
    const rows = chart.positions.map((label, x) => ({ x, label }));
    const domain = count === 1 ? [-1, 1] : [-0.5, count - 0.5];
    const plot = Plot.plot({
      width,
      height: chart.panels.length === 1 ? 250 : 215,
      marginLeft: 46,
      marginRight: 8,
      marginTop: 14,
      marginBottom: 34,
      style: { color: "var(--ink)", background: "none" },
      x: {
        domain,
        ticks: ticks(count, width - 54),
        tickFormat: (n) => (named ? String(n + 1) : chart.positions[n]),
        tickSize: 4,
        label: named ? `${chart.depth}, in order` : chart.depth,
        labelAnchor: "center",
        labelArrow: "none",
      },
      y: { ...axis, ticks: 5, tickSize: 0, tickFormat: tick, label: null },
      marks: [
        Plot.rect(chart.flagged, { x1: (n) => n - 0.5, x2: (n) => n + 0.5, fill: "var(--collapsed)", fillOpacity: 0.08 }),
        Plot.gridY({ stroke: "var(--grid)", strokeOpacity: 1, ticks: 5 }),
        ...panel.bands.flatMap((band) => bandMarks(band, count)),
        ...ruleMarks(chart, number_ === 0, count),
        ...[...panel.series].reverse().flatMap((series) => seriesMarks(series, count, width)),
        Plot.ruleX(rows, Plot.pointerX({ x: "x", stroke: "var(--ink)", strokeOpacity: 0.5, maxRadius: 60 })),
      ],
    });
    const step = walk(count, ["ArrowLeft", "ArrowDown"], ["ArrowRight", "ArrowUp"]);
    return interactive(plot, `${chart.title}, ${panel.title}: line chart`, (row) => described(chart, panel, row), {
      step,
      point: (n) => [plot.scale("x").apply(n), 60],
    });
  }

  function described(chart, panel, row) {
    const lines = panel.series.map((series) => {
      const value = series.values[row.x];
      const [low, high] = [series.low?.[row.x] ?? null, series.high?.[row.x] ?? null];
      const spread = low !== null && high !== null ? ` [${number(low)}, ${number(high)}]` : "";
      return [series.name, number(value) + spread];
    });
    for (const band of panel.bands)
      lines.push([band.name, band.low[row.x] === null ? "–" : `${number(band.low[row.x])} to ${number(band.high[row.x])}`]);
    return [`${chart.depth} ${row.label}`, lines];
  }

  function swatch(kind, series) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 26 11");
    svg.setAttribute("aria-hidden", "true");
    const mark = document.createElementNS(svg.namespaceURI, kind === "band" ? "rect" : "line");
    const style =
      kind === "band"
        ? { width: 26, height: 11, rx: 2, fill: "var(--band)", "fill-opacity": 0.42 }
        : { x1: 0, x2: 26, y1: 6, y2: 6, stroke: look(series).stroke, "stroke-width": 2.25, "stroke-dasharray": look(series).dash || "none" };
    for (const [key, value] of Object.entries(style)) mark.setAttribute(key, value);
    svg.append(mark);
    return svg;
  }

  function legend(chart) {
    const items = new Map();
    for (const panel of chart.panels) {
      for (const series of panel.series) items.set(`line ${series.role} ${series.index} ${series.name}`, ["line", series]);
      for (const band of panel.bands) items.set(`band ${band.name}`, ["band", band]);
    }
    const list = element("ul", { class: "legend" }, element("li", { class: "unit" }, `↑ ${chart.label}`));
    for (const [kind, one] of items.values()) list.append(element("li", {}, swatch(kind, one), one.name));
    return list;
  }

  function profile(chart, width) {
    const least = printing ? 200 : 260;
    const most = Math.max(1, Math.floor((width + 24) / (least + 24)));
    const columns = Math.min(chart.panels.length, most);
    const axis = vertical(chart);
    const each = Math.floor((width - 24 * (columns - 1)) / columns);
    const panels = element("div", { class: "panels", style: `grid-template-columns: repeat(${columns}, minmax(0, 1fr))` });
    chart.panels.forEach((panel, n) => {
      const title = chart.panels.length > 1 || panel.title !== chart.title ? [element("h4", {}, panel.title)] : [];
      panels.append(element("div", { class: "panel" }, ...title, profilePanel(chart, panel, n, each, axis)));
    });
    return [legend(chart), panels];
  }

  // Heat maps

  function heat(chart, width) {
    const steps = chart.scale.steps;
    const colours = chart.scale.colours.map((name) => `var(--${name})`);
    const most = width < 420 ? 17 : 30;
    const rows = chart.rows.map((row) => shorten(row, most));
    const left = Math.min(most, Math.max(...rows.map((row) => row.length))) * LABEL_WIDTH + 14;
    const cells = [];
    chart.values.forEach((values, r) =>
      values.forEach((value, c) => {
        if (value !== null) cells.push({ row: r, column: chart.columns[c], value });
      }),
    );
    const shown = ticks(chart.columns.length, width - left).map((n) => chart.columns[n]);
    const gap = (width - left) / chart.columns.length > 7 ? 0.75 : 0;
    const where = { x: "column", y: "row", inset: gap };
    const plot = Plot.plot({
      width,
      height: 38 + Math.max(18, Math.min(26, 300 / rows.length)) * rows.length,
      marginLeft: left,
      marginRight: 4,
      marginTop: 4,
      marginBottom: 34,
      padding: 0,
      style: { color: "var(--ink)", background: "none" },
      x: { type: "band", domain: chart.columns, ticks: shown, tickSize: 3, label: "layer", labelAnchor: "center", labelArrow: "none", padding: 0 },
      y: { type: "band", domain: d3.range(rows.length), tickFormat: (n) => rows[n], tickSize: 0, label: null, padding: 0 },
      color: { type: "threshold", domain: steps, range: colours },
      marks: [
        Plot.cell(cells, { ...where, fill: "value" }),
        Plot.cell(cells, Plot.pointer({ x: "column", y: "row", fill: "none", stroke: "var(--ink)", strokeWidth: 1.75, maxRadius: 24 })),
      ],
    });
    const wide = chart.columns.length;
    const step = (index, key) => {
      if (index < 0) return key.startsWith("Arrow") ? 0 : null;
      const [r, c] = [Math.floor(index / wide), index % wide];
      if (key === "ArrowLeft") return r * wide + Math.max(0, c - 1);
      if (key === "ArrowRight") return r * wide + Math.min(wide - 1, c + 1);
      if (key === "ArrowUp") return Math.max(0, r - 1) * wide + c;
      if (key === "ArrowDown") return Math.min(rows.length - 1, r + 1) * wide + c;
      return null;
    };
    const middle = (scale, value) => scale.apply(value) + scale.bandwidth / 2;
    const point = (n) => [
      middle(plot.scale("x"), chart.columns[n % wide]),
      middle(plot.scale("y"), Math.floor(n / wide)),
    ];
    const tell = (cell) => [`layer ${cell.column}`, [[chart.rows[cell.row], number(cell.value)]]];
    return [interactive(plot, `${chart.title}: heat map`, tell, { step, point }), ramp(steps, colours)];
  }

  function ramp(steps, colours) {
    const bar = element("div", { class: "ramp", "aria-hidden": "true" });
    colours.forEach((colour, n) => {
      const label = n < steps.length ? element("i", {}, String(+steps[n].toFixed(2))) : "";
      bar.append(element("span", { style: `--c: ${colour}` }, label));
    });
    return bar;
  }

  // Dots with intervals

  function dots(chart, width) {
    const most = width < 420 ? 16 : 26;
    const labels = chart.rows.map((row) => shorten(row, most));
    const left = Math.max(...labels.map((row) => row.length)) * LABEL_WIDTH + 16;
    const rows = chart.rows.map((label, n) => ({
      n,
      label,
      value: chart.values[n],
      low: chart.low[n],
      high: chart.high[n],
      colour: look({ role: chart.roles[n], index: chart.indices[n] }).stroke,
    }));
    const ends = [...finite(chart.values), ...finite(chart.high), ...chart.rules.map((rule) => rule.value)];
    const intervals = rows.filter((row) => row.low !== null && row.high !== null);
    const plot = Plot.plot({
      width,
      height: 56 + 26 * rows.length,
      marginLeft: left,
      marginRight: 46,
      marginTop: 18,
      marginBottom: 36,
      style: { color: "var(--ink)", background: "none" },
      x: { domain: [0, (Math.max(...ends) || 1) * 1.08], ticks: 5, tickFormat: tick, tickSize: 4, label: chart.label, labelAnchor: "center", labelArrow: "none" },
      y: { type: "band", domain: d3.range(rows.length), tickFormat: (n) => labels[n], tickSize: 0, label: null },
      marks: [
        Plot.gridX({ stroke: "var(--grid)", strokeOpacity: 1, ticks: 5 }),
        Plot.ruleX(chart.rules, { x: "value", stroke: "var(--muted)", strokeDasharray: "4 3" }),
        Plot.text(chart.rules, { x: "value", text: "label", frameAnchor: "top", dy: -14, fill: "var(--muted)", textAnchor: "middle" }),
        Plot.ruleX([0], { stroke: "var(--muted)" }),
        Plot.ruleY(intervals, { y: "n", x1: "low", x2: "high", stroke: "colour", strokeWidth: 2 }),
        Plot.dot(rows, { y: "n", x: "value", r: 4.5, fill: "colour" }),
        Plot.text(rows, { y: "n", x: (row) => row.high ?? row.value, text: (row) => number(row.value), dx: 9, textAnchor: "start", fill: "var(--ink)" }),
        Plot.dot(rows, Plot.pointerY({ y: "n", x: "value", r: 7, stroke: "var(--ink)", maxRadius: 60 })),
      ],
      color: { type: "identity" },
    });
    const tell = (row) => {
      const spread = row.low !== null && row.high !== null ? ` [${number(row.low)}, ${number(row.high)}]` : "";
      return [row.label, [[chart.label, number(row.value) + spread]]];
    };
    const step = walk(rows.length, ["ArrowLeft", "ArrowUp"], ["ArrowRight", "ArrowDown"]);
    const point = (n) => [plot.scale("x").apply(rows[n].value), plot.scale("y").apply(n) + plot.scale("y").bandwidth / 2];
    return [interactive(plot, `${chart.title}: dot plot`, tell, { step, point })];
  }

  const DRAW = { profile, heat, dots };

  function draw(place_, width) {
    const chart = charts[place_.dataset.chart];
    place_.replaceChildren(...DRAW[chart.type](chart, width));
    place_.dataset.width = String(width);
  }

  const places = [...document.querySelectorAll(".chart")];

  function redraw() {
    if (printing) return;
    hide();
    for (const one of places) {
      const width = Math.floor(one.clientWidth);
      if (width > 0 && String(width) !== one.dataset.width) draw(one, width);
    }
  }

  redraw();
  document.documentElement.dataset.drawn = String(places.length);
  if (places.length) {
    let waiting = 0;
    new ResizeObserver(() => {
      cancelAnimationFrame(waiting);
      waiting = requestAnimationFrame(redraw);
    }).observe(document.querySelector("main"));
    addEventListener("scroll", hide, { passive: true });
    addEventListener("beforeprint", () => {
      printing = true;
      for (const one of places) draw(one, one.closest(".grid, .pair") ? 330 : 690);
    });
    addEventListener("afterprint", () => {
      printing = false;
      redraw();
    });
  }

  // The theme: the system's, until a reader chooses.

  const button = document.getElementById("theme");
  const themes = ["auto", "light", "dark"];
  button.hidden = false;
  button.addEventListener("click", () => {
    const current = document.documentElement.dataset.theme || "auto";
    const next = themes[(themes.indexOf(current) + 1) % themes.length];
    document.documentElement.dataset.theme = next;
    button.textContent = `Theme: ${next}`;
  });
})();
