// Makes the page live. Without it everything is there, as of the moment at which it was loaded.
"use strict";

// The oldest pieces of a long log go: all of it is there as text.
const MOST_CHARACTERS = 2_000_000;

function follow(log) {
  const source = new EventSource(log.dataset.follow);
  let characters = log.textContent.length;
  log.scrollTop = log.scrollHeight;
  source.addEventListener("log", (event) => {
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    const piece = document.createElement("span");
    piece.className = "piece";
    // The server has escaped it.
    piece.innerHTML = JSON.parse(event.data) + "\n";
    log.append(piece);
    characters += piece.textContent.length;
    while (characters > MOST_CHARACTERS && log.firstChild !== piece) {
      characters -= log.firstChild.textContent.length;
      log.firstChild.remove();
    }
    if (atEnd) log.scrollTop = log.scrollHeight;
  });
  source.addEventListener("end", () => {
    source.close();
    location.reload();
  });
  source.addEventListener("error", () => {
    const live = document.getElementById("live");
    if (live && source.readyState === EventSource.CLOSED) live.textContent = "cut off";
  });
}

async function refresh(main) {
  const used = main.contains(document.activeElement) && document.activeElement !== main;
  if (document.hidden || used || String(getSelection())) return;
  const answer = await fetch(location.href, { headers: { "X-Unattended": "1" }, redirect: "manual" });
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("main");
  if (fresh && fresh.innerHTML !== main.innerHTML) main.replaceChildren(...fresh.childNodes);
}

for (const log of document.querySelectorAll("[data-follow]")) follow(log);
for (const main of document.querySelectorAll("[data-refresh]")) {
  setInterval(() => refresh(main).catch(() => {}), 1000 * Number(main.dataset.refresh));
}
