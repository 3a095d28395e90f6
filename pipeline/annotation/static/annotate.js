"use strict";
// One pair on screen, the next one loaded behind it. A vote goes into a queue in localStorage first, then to the
// server, in order; it leaves the queue only when the server has it on disk. Event ids are made here, so that a vote
// whose answer got lost is sent again without counting twice.

const $ = (selector) => document.querySelector(selector);
const { annotator, database, leaseSeconds } = document.body.dataset;
const stage = $("#stage");
const panes = [...document.querySelectorAll(".pane")];

// ---------------------------------------------------------------- queue: votes that the server has not acknowledged

const KEY = `diffusionreward.queue.${database}.${annotator}`; // every project is served from this address
let memory = [];
let storageWorks = true;

function readQueue() {
  if (!storageWorks) return memory;
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? "[]");
  } catch {
    return memory;
  }
}

function writeQueue(queue) {
  memory = queue;
  try {
    localStorage.setItem(KEY, JSON.stringify(queue));
  } catch {
    storageWorks = false; // private mode or no room: this page still keeps them until it is closed
  }
}

const enqueue = (event) => writeQueue([...readQueue(), event]);
const dequeue = (event) => writeQueue(readQueue().filter((other) => other.event_id !== event.event_id));

function newId() {
  // crypto.randomUUID exists on secure origins only, and a colleague may come over plain HTTP
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

// ---------------------------------------------------------------- talking to the server

class Unreachable extends Error {}
const NOT_OURS = "something else answers at the server's address";

async function post(path, body) {
  let response;
  try {
    response = await fetch(path, {
      method: "POST",
      headers: {
        "Content-Type": "application/json",
        "X-Annotator": encodeURIComponent(annotator),
        "X-Database": database,
      },
      body: JSON.stringify(body ?? {}),
      signal: AbortSignal.timeout(20000),
    });
  } catch {
    throw new Unreachable("the server can't be reached");
  }
  if (response.status === 401) {
    location.assign("/");
    throw new Unreachable("you are signed out");
  }
  // an answer that is not ours (a proxy's login page, another program on the port) says nothing about the vote
  const answer = await response.json().catch(() => null);
  const reason = { 409: "problem", 422: "detail" }[response.status]; // what our server says of an event that it refuses
  const refused = Boolean(reason && answer?.[reason]); // and trying again won't help
  if (!answer || !(response.ok || refused)) throw new Unreachable(answer?.problem ?? NOT_OURS);
  return { ok: response.ok, ...answer, problem: answer.problem ?? (response.ok ? null : "the server refused it") };
}

let syncing = false;
let again = false;
let delay = 0;
let timer = 0;

/** Send what is queued, in order, then ask for pairs. One run at a time; failures retry by themselves, every few seconds. */
async function sync() {
  if (syncing) {
    again = true;
    return;
  }
  syncing = true;
  clearTimeout(timer);
  try {
    do {
      again = false;
      await flush();
      await refill();
      undoing = readQueue().some((event) => event.kind === "undo"); // the pair that came back is on its way to the screen
      returning = false;
      letVote(); // there was nothing to take back
    } while (again || readQueue().length);
    delay = 0;
    setStatus("saved", "Saved");
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    delay = Math.min(Math.max(1000, delay * 2), 5000);
    timer = setTimeout(sync, delay);
    showTrouble(error.message);
  } finally {
    syncing = false;
  }
}

async function flush() {
  for (let queue = readQueue(); queue.length; queue = readQueue()) {
    const event = queue[0];
    if (delay === 0) setStatus("working", "Saving");
    const answer = await post("/api/events", event);
    if (answer.ok && typeof answer.saved !== "boolean") throw new Unreachable(NOT_OURS);
    dequeue(event);
    if (!answer.ok) notify(`One vote was not taken: ${answer.problem}.`);
    else if (event.kind === "undo" && !answer.saved) notify("There is nothing to undo.");
  }
}

async function refill() {
  const { pairs: fresh, progress } = await post("/api/next");
  if (!Array.isArray(fresh)) throw new Unreachable(NOT_OURS);
  const voted = new Set(readQueue().map((event) => event.lease)); // judged while the answer was on its way
  const known = new Map(pairs.map((pair) => [pair.lease, pair]));
  pairs = fresh.filter((pair) => !voted.has(pair.lease)).map((pair) => known.get(pair.lease) ?? prefetch(pair));
  showProgress(progress);
  hideTrouble();
  show(progress);
}

// ---------------------------------------------------------------- pairs

let pairs = []; // the first is on screen
let shown = null; // the pair whose pictures are really visible
let coming = null; // the pair whose pictures are being put up
let visibleSince = 0;
let undoing = false;
let returning = false; // after a long absence: the pair on screen may be somebody else's by now
let idle = 0;
const mine = []; // ids of the votes cast in this page, which an undo takes back one by one
const SEEN_MS = 150;

function prefetch(pair) {
  const load = (source) => {
    const picture = new Image();
    picture.src = source;
    return picture.decode();
  };
  pair.ready = Promise.all([pair.left, pair.right, pair.input].map(load));
  pair.ready.catch(() => {}); // handled where it is shown
  return pair;
}

async function show(progress) {
  clearTimeout(idle);
  const pair = pairs[0];
  if (pair && (shown === pair || coming === pair)) return;
  shown = null;
  coming = pair;
  setVoting(false);
  if (!pair) {
    if (!progress || progress.open) return say("Loading the next pair", ""); // all that came was judged meanwhile
    if (progress.waiting) {
      idle = setTimeout(look, 5000);
      return say("The last pairs are with other people", "This page looks again every few seconds.");
    }
    idle = setTimeout(look, 30000);
    return say("All done, thank you", `You judged ${progress.done} pairs. Pairs that come free again appear here by themselves.`);
  }
  try {
    await pair.ready;
  } catch {
    if (coming !== pair) return;
    coming = null;
    pairs = []; // fetched anew with the next answer
    return showTrouble("a picture could not be loaded", true);
  }
  if (coming !== pair) return; // something newer happened meanwhile
  stopPeeking();
  resetView();
  panes.forEach((pane) => {
    pane.querySelector(".candidate").src = pair[pane.dataset.side];
    pane.querySelector(".input").src = pair.input;
    pane.querySelector(".original").removeAttribute("src");
  });
  $("#thumb").src = pair.input;
  await Promise.all([...stage.querySelectorAll(".candidate")].map((image) => image.decode().catch(() => {})));
  if (coming !== pair) return;
  coming = null;
  shown = pair;
  stage.dataset.lease = pair.lease;
  stage.hidden = false;
  $("#message").hidden = true;
  visibleSince = performance.now();
  letVote();
}

/** Take votes on the pair on screen, once it was there long enough to be seen: a key that bounced judges nothing. */
function letVote() {
  if (!shown || undoing || returning) return;
  const wait = visibleSince + SEEN_MS - performance.now();
  if (wait > 0) setTimeout(letVote, wait);
  else setVoting(true);
}

/** Ask for pairs again, unless nobody is here: a page left open must not take them from others. */
function look() {
  if (here()) sync();
  else idle = setTimeout(look, 5000);
}

function vote(choice) {
  if (!document.body.classList.contains("ready")) return;
  const pair = shown;
  const response_ms = Math.round(performance.now() - visibleSince);
  const event_id = newId();
  enqueue({ kind: "vote", event_id, lease: pair.lease, choice, response_ms });
  mine.push(event_id);
  flash(choice);
  pairs = pairs.filter((other) => other !== pair);
  show();
  sync();
}

function undo() {
  if (undoing) return;
  undoing = true; // votes wait, so that the pair that comes back is the next one judged
  setVoting(false);
  enqueue({ kind: "undo", event_id: newId(), target: mine.pop() ?? null });
  sync();
}

// ---------------------------------------------------------------- what the page says

function setStatus(state, text) {
  $("#status").dataset.state = state;
  $("#status").textContent = text;
}

function showTrouble(reason, retry = false) {
  const kept = readQueue().length;
  const where = storageWorks ? "in this browser" : "in this open page only: don't close it";
  const safe = kept ? ` ${kept} ${kept === 1 ? "answer is" : "answers are"} kept ${where}.` : "";
  setStatus("trouble", kept ? "Not saved yet" : "Not connected");
  notify(`${kept ? "Not saved yet" : "Not connected"}: ${reason}.${safe} Trying again by itself.`, true);
  if (!pairs.length) say("Waiting for the server", `${reason}.${safe}`);
  if (retry) {
    clearTimeout(timer);
    timer = setTimeout(sync, 2000);
  }
}

let noticeTimer = 0;
function notify(text, stays = false) {
  clearTimeout(noticeTimer);
  if (stays && $("#notice").textContent === text) return; // shown already, or read and clicked away
  $("#notice").textContent = text;
  $("#notice").dataset.stays = stays;
  $("#notice").hidden = false;
  if (!stays) noticeTimer = setTimeout(() => ($("#notice").hidden = true), 5000);
}

function hideTrouble() {
  if ($("#notice").dataset.stays !== "true") return;
  $("#notice").hidden = true;
  $("#notice").textContent = "";
}

$("#notice").addEventListener("click", () => ($("#notice").hidden = true));

function say(title, text) {
  stage.hidden = true;
  $("#message").hidden = false;
  $("#message h1").textContent = title;
  $("#message p").textContent = text;
}

function showProgress({ done, open }) {
  const total = done + open;
  $("#fill").style.width = `${total ? (100 * done) / total : 100}%`;
  $("#track").setAttribute("aria-valuemax", total);
  $("#track").setAttribute("aria-valuenow", done);
  $("#count").textContent = `${done} of ${total}`;
}

function setVoting(on) {
  document.body.classList.toggle("ready", on);
  document.querySelectorAll("[data-choice], .peek button").forEach((button) => (button.disabled = !on));
}

function flash(choice) {
  const button = $(`[data-choice="${choice}"]`);
  button.classList.remove("chosen");
  void button.offsetWidth; // restarts the animation
  button.classList.add("chosen");
}

// ---------------------------------------------------------------- input and original, in place of both pictures

function peek(what) {
  if (!shown) return;
  if (what === "original") {
    panes.forEach((pane) => {
      const image = pane.querySelector(".original");
      if (image.getAttribute("src")) return;
      image.onerror = () => {
        image.removeAttribute("src"); // the next press asks again
        notify("The original could not be loaded. Press again.");
      };
      image.src = shown.original; // asking for it is what records it
    });
  }
  stage.dataset.peek = what;
}

function stopPeeking() {
  delete stage.dataset.peek;
}

for (const what of ["input", "original"]) {
  const button = $(`#peek-${what}`);
  button.addEventListener("pointerdown", (event) => {
    button.setPointerCapture(event.pointerId);
    peek(what);
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
    button.addEventListener(end, () => {
      stopPeeking();
      button.blur(); // or Space would show this one
    });
  }
  button.addEventListener("contextmenu", (event) => event.preventDefault());
}

// ---------------------------------------------------------------- zoom and pan, the same for both pictures

const MAX_ZOOM = 16;
let view = { zoom: 1, x: 0, y: 0 }; // x, y: offset in picture widths
const pointers = new Map();

function setView(zoom, x, y) {
  zoom = Math.min(Math.max(zoom, 1), MAX_ZOOM);
  const inside = (offset) => Math.min(Math.max(offset, 1 - zoom), 0);
  view = { zoom, x: inside(x), y: inside(y) };
  for (const [name, value] of Object.entries(view)) stage.style.setProperty(`--${name}`, value);
  stage.classList.toggle("zoomed", zoom > 1);
}

const resetView = () => setView(1, 0, 0);

/** Zoom by a factor and keep the picture's point under (px, py), in picture widths, where it is. */
function zoomAt(factor, px, py) {
  const zoom = Math.min(Math.max(view.zoom * factor, 1), MAX_ZOOM);
  const ratio = zoom / view.zoom;
  setView(zoom, px - (px - view.x) * ratio, py - (py - view.y) * ratio);
}

function place(pane, { clientX, clientY }) {
  const box = pane.getBoundingClientRect();
  return [(clientX - box.left) / box.width, (clientY - box.top) / box.height];
}

panes.forEach((pane) => {
  pane.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      zoomAt(Math.exp(-event.deltaY / 300), ...place(pane, event));
    },
    { passive: false },
  );
  pane.addEventListener("dblclick", (event) => (view.zoom > 1 ? resetView() : zoomAt(3, ...place(pane, event))));
  pane.addEventListener("pointerdown", (event) => {
    pane.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, place(pane, event));
  });
  pane.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = place(pane, event);
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const distance = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
      zoomAt(distance(now) / Math.max(distance(before), 1e-3), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    } else {
      setView(view.zoom, view.x + now[0] - before[0], view.y + now[1] - before[1]);
    }
    pointers.set(event.pointerId, now);
  });
  for (const end of ["pointerup", "pointercancel"]) pane.addEventListener(end, (event) => pointers.delete(event.pointerId));
});

// ---------------------------------------------------------------- keys and buttons

const VOTE_KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", ArrowUp: "both_bad", s: "skip" };
const PEEK_KEYS = { " ": "input", r: "original" };
const dialog = $("#guidelines");
// a letter by its place on the keyboard where the layout is not Latin
const keyOf = (event) => {
  if (event.key.length > 1) return event.key;
  const key = event.key.toLowerCase();
  return key > "\x7f" && event.code.startsWith("Key") ? event.code.slice(3).toLowerCase() : key;
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
  const key = keyOf(event);
  const focused = [" ", "Enter"].includes(key) && event.target.closest?.("button");
  if (focused && !focused.closest(".peek")) return; // the browser presses it
  if (focused) {
    event.preventDefault();
    return peek(focused.id.replace("peek-", "")); // for as long as the key is down
  }
  const act = {
    u: undo,
    "?": () => dialog.showModal(),
    0: resetView,
    "+": () => zoomAt(1.5, 0.5, 0.5),
    "=": () => zoomAt(1.5, 0.5, 0.5),
    "-": () => zoomAt(1 / 1.5, 0.5, 0.5),
  }[key];
  if (!(key in VOTE_KEYS) && !(key in PEEK_KEYS) && !act) return;
  event.preventDefault();
  if (event.repeat && !"+=-".includes(key)) return; // a key held down is one vote
  if (key in VOTE_KEYS) vote(VOTE_KEYS[key]);
  else if (key in PEEK_KEYS) peek(PEEK_KEYS[key]);
  else act();
});
document.addEventListener("keyup", (event) => (keyOf(event) in PEEK_KEYS || event.key === "Enter") && stopPeeking());
window.addEventListener("blur", stopPeeking);

document.querySelectorAll("[data-choice]").forEach((button) =>
  button.addEventListener("click", (event) => {
    button.blur(); // or Space would press it again
    if (event.detail < 2) vote(button.dataset.choice); // the second click of two would judge the next pair unseen
  }),
);
$("#undo").addEventListener("click", (event) => {
  event.currentTarget.blur();
  if (event.detail < 2) undo();
});
$("#guide").addEventListener("click", () => dialog.showModal());
dialog.addEventListener("close", () => document.activeElement?.blur()); // or Space would open it again
$("#sign-out").addEventListener("submit", (event) => {
  const kept = readQueue().length;
  const asked = `${kept} of your answers are not saved yet. They stay in this browser until you sign in here again. Sign out?`;
  if (kept && !confirm(asked)) event.preventDefault();
});

// ---------------------------------------------------------------- start, and staying in touch

let lastSeen = Date.now(); // which goes on while the machine sleeps
const here = () => !document.hidden && Date.now() - lastSeen < leaseSeconds * 1000;

function seen() {
  if (!here() && shown) {
    returning = true;
    setVoting(false);
    sync();
  }
  lastSeen = Date.now();
}

// first of all that listen: the key that ends an absence judges nothing
for (const sign of ["keydown", "pointermove", "pointerdown", "wheel"]) {
  document.addEventListener(sign, seen, { passive: true, capture: true });
}
setInterval(() => {
  const leases = pairs.map((pair) => pair.lease);
  if (here() && leases.length) post("/api/renew", { leases }).catch(() => {}); // the next vote will tell
}, (leaseSeconds * 1000) / 3);
document.addEventListener("visibilitychange", () => document.hidden || sync());
window.addEventListener("online", sync);
setVoting(false);
sync();
