// The tabs pattern of ARIA: arrow keys move between tabs, only the selected tab is in the order of the Tab key.

const started = new Set();

// Connect the tabs of the page with their views. `starters` has a function per view, called when it is first shown.
export function startTabs(starters) {
  const tabs = Array.from(document.querySelectorAll("[role=tab]"));
  for (const tab of tabs) {
    tab.addEventListener("click", () => showTab(tab.getAttribute("aria-controls"), starters));
    tab.addEventListener("keydown", (event) => {
      const at = tabs.indexOf(tab);
      const next = { ArrowRight: at + 1, ArrowLeft: at - 1 + tabs.length, Home: 0, End: tabs.length - 1 }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      const other = tabs[next % tabs.length];
      showTab(other.getAttribute("aria-controls"), starters);
      other.focus();
    });
  }
  const named = () => tabs.map((tab) => tab.getAttribute("aria-controls")).find((id) => location.hash === "#/" + id || location.hash === "#" + id);
  addEventListener("hashchange", () => { if (named()) showTab(named(), starters); });
  showTab(named() || "chat", starters);
}

// Show a view by its id: "chat", "compare" or "judge".
export function showTab(id, starters = {}) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const selected = tab.getAttribute("aria-controls") === id;
    tab.setAttribute("aria-selected", String(selected));
    tab.tabIndex = selected ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = !selected;
    if (selected) document.title = tab.textContent + " · lora-chat";
  }
  // With the slash no element has this name, so a reload neither scrolls nor moves the start of the Tab order.
  if (location.hash !== "#/" + id) history.replaceState(null, "", "#/" + id);
  if (!started.has(id) && starters[id]) {
    started.add(id);
    starters[id](document.getElementById(id));
  }
  document.dispatchEvent(new CustomEvent("view", { detail: id }));
}
