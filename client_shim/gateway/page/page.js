// The page: files that are dropped or chosen, their rows, and the list of all uploads.

import { isSameFile, onOthers, remembered } from "./remembered.js";
import { Away, statusOfAll } from "./requests.js";
import { Row } from "./row.js";
import { State, Upload } from "./upload.js";
import { durationText, percentText, sizeText } from "./units.js";

// At a time: a browser makes six connections to one server, and some are for questions.
const AT_A_TIME = 2;
const POLL_INTERVAL = 1000; // milliseconds
const LIST_INTERVAL = 2000;

const rows = new Map(); // upload → row

const DOES = {
  pause: (upload) => upload.pause(),
  resume: (upload) => (upload.state === State.ELSEWHERE ? upload.attach(upload.file) : upload.queue()),
  again: (upload) => upload.again(),
  cancel: (upload) => upload.remove(),
  remove: (upload) => upload.remove(),
};

function changed(upload) {
  const row = rows.get(upload);
  if (upload.state === State.CANCELLED) {
    row?.element.remove();
    rows.delete(upload);
  } else {
    row?.show();
  }
  queueMicrotask(begin);
}

// Those that wait, as far as it is their turn.
function begin() {
  let active = [...rows.keys()].filter((upload) => upload.active).length;
  for (const upload of rows.keys()) {
    if (active < AT_A_TIME && upload.state === State.WAITING) {
      active += 1;
      upload.go();
    }
  }
}

function show(upload) {
  const row = new Row(upload, DOES);
  rows.set(upload, row);
  document.getElementById("uploads").prepend(row.element);
}

function add(files) {
  const directory = document.getElementById("directory").value.trim();
  for (const file of files) {
    const known = [...rows.keys()].find((upload) => upload.state === State.INTERRUPTED
      && isSameFile(upload.fingerprint, file));
    if (known !== undefined) {
      known.attach(file);
    } else {
      show(new Upload({ file, directory, changed }));
    }
  }
  begin();
}

// -- dropping and choosing -------------------------------------------------------------------------------------------

// A directory looks like a file here, and cannot be read as one.
function filesOf(transfer) {
  return [...transfer.items]
    .filter((item) => item.kind === "file" && item.webkitGetAsEntry?.()?.isDirectory !== true)
    .map((item) => item.getAsFile());
}

function listenToFiles() {
  const drop = document.getElementById("drop");
  const choose = document.getElementById("choose");
  choose.addEventListener("change", () => {
    add([...choose.files]);
    choose.value = ""; // the same one may be chosen again
  });
  // dropped beside the field they would replace the page
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) {
      drop.classList.remove("over");
    }
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    add(filesOf(event.dataTransfer));
  });
}

// -- all uploads -----------------------------------------------------------------------------------------------------

const STATES = { open: "open", completing: "completing", linking: "linking", finished: "stored", failed: "failed" };

function cell(text, className = "") {
  const td = document.createElement("td");
  td.textContent = text;
  td.className = className;
  return td;
}

function stateText(told) {
  if (told.error !== null) {
    return `${STATES[told.state]} (${told.error})`;
  }
  if (told["waits-for"] !== null) {
    return `waits for the helper (${told["waits-for"]})`;
  }
  return told.state === "open" ? (told.writing ? "in progress" : "idle") : STATES[told.state];
}

function lineOf(told, ours) {
  const tr = document.createElement("tr");
  tr.classList.toggle("ours", ours.has(told.upload));
  tr.classList.toggle("ended", told.state === "finished" || told.state === "failed");
  const bar = cell("", "bar");
  if (told.size !== null) {
    const progress = document.createElement("progress");
    Object.assign(progress, { max: Math.max(told.size, 1), value: told.size === 0 ? 1 : told.offset });
    progress.setAttribute("aria-label", percentText(told.offset, told.size));
    bar.append(progress);
  }
  tr.append(cell(told.upload, "short"), cell(stateText(told)), bar,
    cell(told.size === null || told.offset === told.size ? sizeText(told.offset) : `${sizeText(told.offset)} of ${sizeText(told.size)}`),
    cell(told.rate ? `${sizeText(told.rate)}/s` : ""), cell(`${durationText(Date.now() / 1000 - told.created)} ago`));
  return tr;
}

function showAll(told) {
  const ours = new Set([...rows.keys()].map((upload) => upload.short));
  const section = document.getElementById("all");
  section.querySelector("tbody").replaceChildren(...told.uploads.map((each) => lineOf(each, ours)));
  section.querySelector("table").hidden = told.uploads.length === 0;
  document.getElementById("none").hidden = told.uploads.length > 0;
  const more = document.getElementById("not-listed");
  more.hidden = told["uploads-not-listed"] === 0;
  more.textContent = `${told["uploads-not-listed"]} more are not listed.`;
}

async function refreshAll() {
  const away = document.getElementById("gateway-away");
  try {
    showAll(await statusOfAll());
    away.hidden = true;
  } catch (error) {
    away.hidden = !(error instanceof Away);
  }
}

// Again and again while the page is seen, never two at a time.
function whileVisible(work, interval) {
  let timer = null;
  let working = false;
  async function turn() {
    timer = null;
    if (working || document.visibilityState !== "visible") {
      return;
    }
    working = true;
    try {
      await work();
    } finally {
      working = false;
      timer ??= setTimeout(turn, interval);
    }
  }
  document.addEventListener("visibilitychange", () => timer ?? turn());
  turn();
}

// -- the beginning ---------------------------------------------------------------------------------------------------

function recall() {
  for (const entry of remembered()) {
    show(new Upload({ entry, changed }));
  }
}

function listenToOtherPages() {
  onOthers((path, forgotten) => {
    const upload = [...rows.keys()].find((each) => each.path === path && !each.ended && each.state !== State.CANCELLING);
    if (upload === undefined) {
      return;
    }
    if (forgotten && upload.file === null) {
      changed(Object.assign(upload, { state: State.CANCELLED }));
    } else if (!forgotten) {
      upload.leave();
    }
  });
}

recall();
listenToFiles();
listenToOtherPages();
whileVisible(() => Promise.all([...rows.keys()].map((upload) => upload.poll())), POLL_INTERVAL);
whileVisible(refreshAll, LIST_INTERVAL);
