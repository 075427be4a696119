// One column of the comparison: a model, its reply, and the three ways to look at it.

import { streamChat } from "./api.js";
import { build, fill } from "./dom.js";
import { MarkdownView } from "./markdown.js";
import { describeChecks, labelModel } from "./model_picker.js";
import { FINISHES, Reply } from "./reply.js";
import { countWords, showName, showText } from "./text.js";
import { renderTokens } from "./token_view.js";
import { compareWords } from "./word_difference.js";

export class Column {
  constructor(model, number) {
    this.model = model;
    this.number = number;
    this.name = labelModel(model);
    this.reply = new Reply();
    this.error = null;
    this.finished = false;
    this.body = build("div", { class: "content" });
    this.state = build("p", { class: "small muted" });
    this.markdown = new MarkdownView(this.body);
    const title = "compare-title-" + number;
    this.node = build("article", { class: "card column", "aria-labelledby": title, "aria-busy": "true" },
      build("h3", { id: title, dir: "auto" }, this.name),
      build("p", { class: "small muted" }, number === 0 ? "reference · " + describeChecks(model) : describeChecks(model)),
      this.body, this.state);
  }

  // Ask the model and show the reply as it arrives. Never throws.
  async run(body, signal) {
    this.state.textContent = "Waiting for the first token …";
    try {
      await this.stream({ ...body, model: this.model.id }, signal);
    } catch (error) {
      if (error.name === "AbortError") this.reply.finish = "stopped";
      else {
        this.error = error;
        this.reply.finish = "failed";
      }
    }
    this.markdown.finish(this.text);
    this.finished = true;
    this.node.setAttribute("aria-busy", "false");
  }

  // A server that filters replies refuses probabilities, which would show the unfiltered text; then they are left out.
  async stream(body, signal) {
    const take = (chunk) => {
      this.reply.add(chunk);
      this.markdown.update(this.text);
      this.state.textContent = this.reply.tokens.length ? countWords(this.reply.tokens.length, "token") : "";
    };
    try {
      await streamChat(body, signal, take);
    } catch (error) {
      if (error.status !== 400 || !/logprobs/.test(error.param + error.message)) throw error;
      await streamChat({ ...body, logprobs: undefined, top_logprobs: undefined }, signal, take);
    }
  }

  // The reasoning, reply and calls as one text, which is what is compared.
  get text() {
    const calls = this.reply.calls.map((call) => call.name + "(" + call.arguments + ")");
    return [this.reply.reasoning, this.reply.content, ...calls].filter(Boolean).join("\n\n");
  }

  // Show the finished reply as "differences", "probabilities" or "text".
  show(view, reference) {
    this.state.textContent = this.describe();
    this.state.classList.toggle("error", Boolean(this.error));
    if (view === "probabilities" && this.reply.tokens.length) {
      fill(this.body, renderTokens(this.reply.tokens, this.name, "token-" + this.number));
    } else if (view === "probabilities") {
      fill(this.body, build("p", { class: "plain-text" }, showText(this.text)), build("p", { class: "small muted" }, "The server sent no probabilities."));
    } else if (view === "differences" && reference && !this.error && !reference.error) {
      this.showDifferences(reference);
    } else if (view === "differences") {
      fill(this.body, build("p", { class: "plain-text", dir: "auto" }, showText(this.text)));
    } else {
      this.body.replaceChildren();
      this.markdown = new MarkdownView(this.body);
      this.markdown.finish(this.text);
    }
  }

  showDifferences(reference) {
    const difference = compareWords(reference.text, this.text);
    const parts = difference.parts.map((part) => {
      if (part.kind === "same") return showText(part.text);
      return build(part.kind === "added" ? "ins" : "del", {}, showText(part.text));
    });
    const summary = difference.added || difference.removed
      ? countWords(difference.added, "word") + " added, " + countWords(difference.removed, "word") + " removed" + (difference.exact ? "" : " (too long to align)")
      : "The same words as the reference";
    fill(this.body, build("p", { class: "small muted summary" }, summary), build("p", { class: "plain-text", dir: "auto" }, parts));
  }

  describe() {
    if (this.error) return showText(this.error.message);
    const tokens = this.reply.tokens;
    const mean = tokens.length ? tokens.reduce((sum, token) => sum + Math.max(-100, token.logprob), 0) / tokens.length : null;
    const parts = [];
    if (tokens.length) parts.push(countWords(tokens.length, "token") + ", perplexity " + Math.exp(-mean).toPrecision(3) + ".");
    if (this.reply.model && this.reply.model !== this.model.id) parts.push("The server answered with " + showName(this.reply.model) + ".");
    if (FINISHES[this.reply.finish]) parts.push(FINISHES[this.reply.finish]);
    if (!this.text) parts.push("The reply has no text.");
    return parts.join(" ") || "Finished.";
  }
}
