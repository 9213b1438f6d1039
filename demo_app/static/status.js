// The status page: ask one worker for the reports of all, every two seconds.

import { request } from "./request.js";

const $ = (id) => document.getElementById(id);

function cell(text, tag = "td") {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function age(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 129600 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

function row(worker, several) {
  const made = document.createElement("tr");
  const name = cell("", "th");
  name.scope = "row";
  const state = document.createElement("span");
  state.className = "state";
  state.dataset.state = worker.state === "serving" ? "live" : "reconnecting";
  const dot = document.createElement("span");
  dot.className = "dot";
  state.append(dot, String(worker.pid));
  const note = [several ? worker.host : "", worker.state === "serving" ? "" : worker.state].filter(Boolean).join(", ");
  if (note) {
    const small = document.createElement("small");
    small.textContent = note;
    state.append(small);
  }
  name.append(state);
  const { websocket, sse, poll } = worker.listening;
  made.append(
    name,
    cell(age(worker.age_s)),
    cell(websocket),
    cell(sse),
    cell(poll),
    cell(worker.posted_per_s.toFixed(1)),
    cell(worker.delivered_per_s.toFixed(1)),
    cell(`${worker.loop_delay_ms.toFixed(1)} ms`),
    cell(`${worker.loop_delay_max_ms.toFixed(1)} ms`),
  );
  return made;
}

// One row for each protocol over which somebody listens to this worker.
function protocolRows(worker) {
  return Object.entries(worker.protocols).map(([protocol, { connections, listening }]) => {
    const made = document.createElement("tr");
    const name = cell(worker.pid, "th");
    name.scope = "row";
    made.append(name, cell(protocol), cell(connections), cell(listening));
    return made;
  });
}

async function refresh() {
  const result = await request("/api/status", { timeoutMs: 5000 });
  $("state").dataset.state = result.ok ? "live" : "offline";
  const words = result.ok ? `Answered by worker ${result.body.pid}` : result.message;
  if ($("state-text").textContent !== words) $("state-text").textContent = words;
  if (!result.ok) return;
  const { workers } = result.body;
  const several = new Set(workers.map(({ host }) => host)).size > 1;
  const sum = (value) => workers.reduce((total, worker) => total + value(worker), 0);
  $("workers").replaceChildren(...workers.map((worker) => row(worker, several)));
  $("connections").replaceChildren(...workers.flatMap(protocolRows));
  $("total-workers").textContent = workers.filter(({ state }) => state === "serving").length;
  $("total-listening").textContent = sum(({ listening }) => Object.values(listening).reduce((a, b) => a + b, 0));
  $("total-posted").textContent = sum((worker) => worker.posted_per_s).toFixed(1);
  $("total-delivered").textContent = sum((worker) => worker.delivered_per_s).toFixed(1);
  $("total-delay").textContent = Math.max(0, ...workers.map((worker) => worker.loop_delay_max_ms)).toFixed(1);
}

async function run() {
  for (;;) {
    if (!document.hidden) await refresh();
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}

run();
