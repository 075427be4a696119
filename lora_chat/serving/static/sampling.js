// The fields of sampling, built once for the chat and once for the comparison, with shared values.

import { build } from "./dom.js";
import { loadSettings, saveSettings } from "./conversation_store.js";

const FIELDS = [
  { key: "temperature", label: "Temperature", min: 0, max: 2, step: 0.1, start: 0, hint: "0 takes the most probable token each time." },
  { key: "top_p", label: "Top p", min: 0.05, max: 1, step: 0.05, start: 1, hint: "Share of the probability that is sampled from." },
  { key: "seed", label: "Seed", min: 0, max: 2147483647, step: 1, start: 0, hint: "The same seed gives the same reply." },
  { key: "max_tokens", label: "Largest reply, in tokens", min: 1, max: 1000000, step: 1, start: null, hint: "Empty: as many as fit." },
];

const groups = []; // the inputs of each fieldset and the function that shows which are in use

// Build the fields inside a fieldset and return a function that returns the sampling part of a request.
export function buildSampling(fieldset, changed = () => {}) {
  const stored = loadSettings().sampling || {};
  const inputs = {};
  for (const field of FIELDS) {
    const id = fieldset.id + "-" + field.key;
    const value = isInside(field, stored[field.key]) ? stored[field.key] : field.start;
    const input = build("input", {
      id: id, type: "number", min: field.min, max: field.max, step: field.step === 1 ? 1 : "any", value: value ?? "",
      inputmode: "decimal", "aria-describedby": id + "-hint", autocomplete: "off",
    });
    const hint = build("span", { id: id + "-hint", class: "small muted hint" }, field.hint);
    fieldset.append(build("div", { class: "field number" }, build("label", { for: id }, field.label), input, hint));
    input.addEventListener("change", () => {
      const number = input.valueAsNumber;
      if (!isInside(field, number)) input.value = Number.isFinite(number) ? clamp(field, number) : field.start ?? "";
      saveSettings({ sampling: readValues(inputs) });
      for (const group of groups) {
        group.inputs[field.key].value = input.value;
        group.show();
      }
      changed();
    });
    inputs[field.key] = input;
  }
  // top_p changes nothing without sampling, and the server refuses it, so it is switched off then.
  const show = () => { inputs.top_p.disabled = inputs.seed.disabled = inputs.temperature.valueAsNumber === 0; };
  groups.push({ inputs: inputs, show: show });
  show();
  return () => {
    const { temperature, top_p: share, seed, max_tokens: limit } = readValues(inputs);
    const sampled = temperature === 0 ? {} : { top_p: share, seed: seed };
    return { temperature: temperature, ...sampled, ...(limit === null ? {} : { max_tokens: limit }) };
  };
}

function isInside(field, value) {
  return typeof value === "number" && value >= field.min && value <= field.max && (field.step !== 1 || Number.isInteger(value));
}

function readValues(inputs) {
  return Object.fromEntries(FIELDS.map((field) => {
    const value = inputs[field.key].valueAsNumber;
    return [field.key, isInside(field, value) ? value : field.start];
  }));
}

function clamp(field, number) {
  return Math.min(field.max, Math.max(field.min, field.step === 1 ? Math.round(number) : number));
}
