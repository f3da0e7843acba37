// What needs a script: copying a link, deleting, the live queue. Whatever it inserts, it inserts as text.

const POLL_MILLISECONDS = 3000;
const TOAST_MILLISECONDS = 5000;

const root = new URL(document.body.dataset.root, location.href);
const dialog = document.getElementById("confirm");
const toast = document.getElementById("toast");

// --- saying something ------------------------------------------------------------------------------------------------

let silence;

function say(text) {
  toast.textContent = text;
  clearTimeout(silence);
  silence = setTimeout(() => {
    toast.textContent = "";
  }, TOAST_MILLISECONDS);
}

// --- copying ---------------------------------------------------------------------------------------------------------

async function copy(actions) {
  const link = new URL(actions.dataset.link, location.href).href;
  say((await copied(link)) ? "Link copied." : `Copy this link: ${link}`);
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedTheOldWay(text);
  }
}

// Pages over plain HTTP from another machine have no clipboard of the new kind.
function copiedTheOldWay(text) {
  const before = document.activeElement;
  const field = document.createElement("textarea");
  field.value = text;
  field.className = "unseen";
  field.readOnly = true;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  before?.focus();
  return done;
}

// --- deleting --------------------------------------------------------------------------------------------------------

async function remove(actions, button) {
  if ((await confirmed(actions.dataset.label)) !== "delete") {
    button.focus();
    return;
  }
  const problem = await deleted(actions.dataset.url);
  if (problem) {
    say(problem);
    button.focus();
  } else {
    leave(actions.closest("[data-image]"));
  }
}

function confirmed(label) {
  document.getElementById("confirm-subject").textContent = label;
  dialog.returnValue = ""; // Escape leaves the last one in place
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}

// What went wrong, in words, or null. The default mode of fetch is kept: any other, with no-referrer, sends no Origin.
async function deleted(url) {
  try {
    const answer = await fetch(url, { method: "DELETE" });
    if (answer.ok) return null;
    const body = await answer.json().catch(() => ({}));
    return body.error ?? `The server answered ${answer.status}.`;
  } catch {
    return "The server does not answer; the image has not been deleted.";
  }
}

function leave(image) {
  if (!image.matches(".card")) {
    location.replace(root);
    return;
  }
  const next = image.nextElementSibling ?? image.previousElementSibling;
  image.remove();
  if (!next) {
    location.reload();
    return;
  }
  next.querySelector("a").focus();
  say("Image deleted.");
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button) return;
  const actions = button.closest(".actions");
  if (button.dataset.do === "copy") copy(actions);
  else remove(actions, button);
});

for (const button of document.querySelectorAll("[data-do]")) button.hidden = false;

// --- pictures without a preview --------------------------------------------------------------------------------------

function withoutPreview(image) {
  const place = Object.assign(document.createElement("span"), { className: "none", textContent: "No preview" });
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", `${image.alt} (no preview)`);
  image.replaceWith(place);
}

document.addEventListener("error", (event) => event.target.matches?.(".tile img") && withoutPreview(event.target), true);
for (const image of document.querySelectorAll(".tile img")) if (image.complete && !image.naturalWidth) withoutPreview(image);

// --- the queue, while somebody looks ---------------------------------------------------------------------------------

const status = document.getElementById("status");
let unfinished = 0;
let poll;

async function look() {
  clearTimeout(poll);
  if (document.hidden) return;
  try {
    const answer = await fetch(new URL("gallery/status", root), { signal: AbortSignal.timeout(10_000) });
    if (!answer.ok) throw new Error(answer.statusText);
    show(await answer.json());
  } catch {
    state("The server does not answer", "lost");
  }
  clearTimeout(poll);
  poll = setTimeout(look, POLL_MILLISECONDS);
}

function show({ summary, models }) {
  const now = models.reduce((sum, model) => sum + model.in_flight + model.waiting, 0);
  if (now < unfinished) document.querySelector(".fresh").hidden = false;
  unfinished = now;
  state(summary, now ? "busy" : "idle");
}

// Only a change is written, for it is read out.
function state(text, kind) {
  if (status.textContent !== text) status.textContent = text;
  status.closest(".status").dataset.state = kind;
}

document.addEventListener("visibilitychange", look);
look();

// --- times in the reader's own zone ----------------------------------------------------------------------------------

for (const time of document.querySelectorAll("time")) {
  time.title = new Date(time.dateTime).toLocaleString();
}
