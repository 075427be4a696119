"use strict";
(function () {
  const data = JSON.parse(document.getElementById("report-data").textContent);

  for (const part of document.querySelectorAll(".js")) part.hidden = false;

  const theme = document.getElementById("theme");
  theme.addEventListener("click", function () {
    const root = document.documentElement;
    const chosen = root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    root.dataset.theme = chosen === "dark" ? "light" : "dark";
  });

  function show(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 1e6 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(5)));
  }

  function findNearest(points, step) {
    let low = 0;
    let high = points.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < step) low = middle + 1;
      else high = middle;
    }
    return low > 0 && step - points[low - 1][0] <= points[low][0] - step ? points[low - 1] : points[low];
  }

  function prepareChart(figure) {
    const series = (data.charts || {})[figure.dataset.chart] || [];
    const readout = figure.querySelector(".readout");
    const hidden = new Set();
    const steps = Array.from(new Set(series.flatMap((one) => one.points.map((point) => point[0])))).sort((a, b) => a - b);
    let current = null;

    function point(step) {
      current = step;
      for (const svg of figure.querySelectorAll("svg.chart")) {
        const set = svg.dataset;
        const share = set.high > set.low ? (step - set.low) / (set.high - set.low) : 0.5;
        const x = Number(set.left) + share * (set.width - 14 - set.left);
        const line = svg.querySelector(".crosshair");
        line.setAttribute("x1", x);
        line.setAttribute("x2", x);
        line.setAttribute("visibility", "visible");
      }
      readout.textContent = "";
      const head = document.createElement("b");
      head.textContent = "step " + show(step);
      readout.append(head);
      const tolerance = steps.length > 1 ? (steps[steps.length - 1] - steps[0]) / 50 : 1;
      for (const one of series) {
        if (hidden.has(one.key)) continue;
        const near = findNearest(one.points, step);
        if (Math.abs(near[0] - step) > tolerance) continue;
        const value = document.createElement("b");
        value.textContent = show(near[1]);
        readout.append(" · " + one.label + " ", value);
        if (near[0] !== step) readout.append(" (step " + show(near[0]) + ")");
      }
    }

    for (const svg of figure.querySelectorAll("svg.chart")) {
      svg.addEventListener("pointermove", function (event) {
        const box = svg.getBoundingClientRect();
        const set = svg.dataset;
        const x = ((event.clientX - box.left) / box.width) * set.width;
        const share = Math.min(1, Math.max(0, (x - set.left) / (set.width - 14 - set.left)));
        const step = Number(set.low) + share * (set.high - set.low);
        point(findNearest(steps.map((one) => [one]), step)[0]);
      });
      svg.addEventListener("keydown", function (event) {
        if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
        event.preventDefault();
        const at = current === null ? 0 : steps.indexOf(current) + (event.key === "ArrowRight" ? 1 : -1);
        point(steps[Math.min(steps.length - 1, Math.max(0, at))]);
      });
    }
    for (const box of figure.querySelectorAll("input[data-toggle]")) {
      box.addEventListener("change", function () {
        const key = box.dataset.toggle;
        if (box.checked) hidden.delete(key);
        else hidden.add(key);
        for (const group of figure.querySelectorAll("g[data-series]")) {
          if (group.dataset.series === key) group.setAttribute("visibility", box.checked ? "visible" : "hidden");
        }
      });
    }
    const log = figure.querySelector("input[data-log]");
    if (log) log.addEventListener("change", () => figure.classList.toggle("is-log", log.checked));
  }

  function classify(pair, metric) {
    if (!pair) return "";
    if (metric.binary) {
      if (pair[1] > 0.5) return pair[0] > 0.5 ? "right" : "fixed";
      return pair[0] > 0.5 ? "broken" : "wrong";
    }
    if (pair[0] === pair[1]) return "same";
    return pair[1] < pair[0] === metric.lower ? "better" : "worse";
  }

  function prepareSamples() {
    const list = document.getElementById("samples");
    if (!list) return;
    const samples = data.samples;
    const search = document.getElementById("sample-search");
    const metric = document.getElementById("sample-metric");
    const change = document.getElementById("sample-change");
    const count = document.getElementById("sample-count");
    const items = Array.from(list.children, (node) => ({
      node: node,
      text: Array.from(node.querySelectorAll(".text"), (part) => part.textContent).join("\n").toLowerCase(),
      scores: samples.scores[Number(node.dataset.item)] || {},
      kind: "",
    }));

    function label() {
      const chosen = metric ? samples.metrics[metric.value] : null;
      const counts = {};
      for (const item of items) {
        item.kind = chosen && Object.hasOwn(item.scores, metric.value) ? classify(item.scores[metric.value], chosen) : "";
        const badge = item.node.querySelector(".change");
        const meaning = samples.changes[item.kind];
        badge.hidden = !meaning;
        badge.textContent = meaning ? meaning.label : "";
        badge.className = "word change " + (meaning ? meaning.tone : "neutral");
        counts[item.kind] = (counts[item.kind] || 0) + 1;
      }
      if (!change) return;
      for (const option of change.options) {
        if (!option.value) continue;
        option.hidden = option.disabled = !counts[option.value];
        option.textContent = samples.changes[option.value].label + " (" + (counts[option.value] || 0) + ")";
      }
      if (change.selectedOptions[0] && change.selectedOptions[0].disabled) change.value = "";
    }

    const pageSize = 20;
    let limit = pageSize;
    const more = document.getElementById("sample-more");
    more.addEventListener("click", function () {
      limit += pageSize;
      filter();
    });

    function restart() {
      limit = pageSize;
      filter();
    }

    function filter() {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let matching = 0;
      for (const item of items) {
        const fits = words.every((word) => item.text.includes(word)) && (!change || !change.value || item.kind === change.value);
        if (fits) matching += 1;
        item.node.hidden = !fits || matching > limit;
      }
      more.hidden = matching <= limit;
      count.textContent = Math.min(limit, matching) + " of " + matching + " prompts" +
        (matching < items.length ? " that fit, " + items.length + " in total" : "");
    }

    search.addEventListener("input", restart);
    if (change) change.addEventListener("change", restart);
    if (metric) metric.addEventListener("change", function () { label(); restart(); });
    label();
    filter();
  }

  for (const figure of document.querySelectorAll("[data-chart]")) prepareChart(figure);
  prepareSamples();
})();
