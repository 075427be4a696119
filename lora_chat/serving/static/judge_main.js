// Start of the page of `lora-chat judge`, which has this view only.

import { connection } from "./api.js";
import { byId } from "./dom.js";
import { startJudge } from "./judge.js";

connection.listeners.push((connected) => {
  const strip = byId("connection");
  strip.hidden = connected;
  strip.textContent = connected ? "" : "The server does not answer. Stored votes are safe; the page asks again every three seconds.";
});
startJudge(byId("judge"));
