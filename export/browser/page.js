// The bundle's page: loads the model, and answers for the text that a person types.

import { Driver } from "./driver.js";

const at = (id) => document.getElementById(id);
const megabytes = (bytes) => (bytes < 1e6 ? `${(bytes / 1e3).toFixed(0)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
const percent = (share) => `${(100 * share).toFixed(1)} %`;

function element(kind, text = "", ...children) {
  const made = document.createElement(kind);
  made.textContent = text;
  made.append(...children);
  return made;
}

function trouble(text) {
  at("trouble").textContent = text;
  at("trouble").hidden = false;
}

function showProgress(done, total) {
  at("progress").value = done / total;
  at("loaded").textContent = done < total ? `Loading the model: ${megabytes(done)} of ${megabytes(total)}` : "Preparing the model";
}

function sampleOf(settings) {
  const first = at("first").value;
  if (settings.split_words) return { tokens: first.split(/\s+/).filter(Boolean) };
  return settings.pair || settings.twin ? { text: first, text_pair: at("second").value } : { text: first };
}

function show(answer, milliseconds) {
  const verdict = (text) => {
    const line = element("p", "", element("strong", text), element("span", `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`));
    line.className = "verdict";
    return line;
  };
  if (answer.scores) {
    const list = element("ul");
    list.className = "scores";
    for (const [label, score] of Object.entries(answer.scores).sort((a, b) => b[1] - a[1]).slice(0, 8)) {
      const fill = element("i");
      fill.style.width = `${100 * score}%`;
      const bar = element("div", "", fill);
      bar.className = "bar";
      const item = element("li", "", element("div", "", element("b", label), element("span", percent(score))), bar);
      item.classList.toggle("best", label === answer.label);
      list.append(item);
    }
    at("answer").replaceChildren(verdict(answer.label), list);
  } else if ("similarity" in answer) {
    const note = element("p", "Cosine similarity: 1 means the same, near 0 unrelated.");
    note.className = "hint";
    at("answer").replaceChildren(verdict(answer.similarity.toFixed(3)), note);
  } else if (answer.tags) {
    const tags = element("div");
    tags.className = "tags";
    tags.append(...answer.tags.map(([word, tag]) => element("span", word, element("small", tag))));
    at("answer").replaceChildren(verdict(`${answer.tags.length} words`), tags);
  } else {
    const values = element("p", Object.entries(answer).map(([name, value]) => `${name}: ${value.slice(0, 8).join(", ")}`).join(" · "));
    at("answer").replaceChildren(verdict("Outputs"), values);
  }
  at("answer").hidden = false;
}

async function start() {
  at("unserved").remove();
  at("loading").hidden = false;
  const driver = await Driver.open(new URL("../", import.meta.url), { progress: showProgress });
  const settings = driver.program.preprocess;
  if (settings.kind === "text") await driver.predict(sampleOf(settings)); // the first run is slow; nobody need wait for it
  at("loading").hidden = true;
  const task = (driver.program.task ?? "the model").replaceAll("-", " ");
  at("title").textContent = document.title = task[0].toUpperCase() + task.slice(1);
  const seconds = (performance.now() / 1000).toFixed(1);
  const threads = driver.threads === 1 ? "one thread" : `${driver.threads} threads`;
  const slow = crossOriginIsolated ? "" : ", because the server sends no isolation headers (serve.py does)";
  at("facts").textContent = `${megabytes(driver.bytes)} model, ready after ${seconds} s, ${threads}${slow}.`;
  if (settings.kind !== "text") {
    return trouble(`This page reads text, and the model takes ${settings.kind === "image" ? "images" : "tensors"}: use run.py.`);
  }
  if (settings.pair || settings.twin) {
    at("second-part").hidden = false;
    at("second").required = true;
    at("first-label").textContent = "First text";
  }
  at("go").textContent = settings.twin ? "Compare" : settings.split_words ? "Tag words" : driver.program.labels ? "Classify" : "Run";
  at("form").hidden = false;
  at("first").focus();

  at("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    at("go").disabled = true;
    at("trouble").hidden = true;
    try {
      const begin = performance.now();
      const answer = await driver.answer(sampleOf(settings));
      show(answer, performance.now() - begin);
    } catch (error) {
      trouble(`The model could not answer: ${error?.message ?? error}`);
    } finally {
      at("go").disabled = false;
    }
  });
  at("form").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
  });
}

start().catch((error) => {
  at("loading").hidden = true;
  trouble(`The model could not be loaded: ${error?.message ?? error}`);
});
