// Judge: blind comparison of two replies.

import { build, fill } from "./dom.js";

// Build the view when it is first shown.
export function startJudge(section) {
  fill(section, build("div", { class: "card" }, build("h2", {}, "Judge"), build("p", { class: "muted" }, "Start a judgement with lora-chat judge RUN A B.")));
}
