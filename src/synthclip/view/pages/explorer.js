// What makes pages quicker to use. Every page works without it.
"use strict";

// Filters apply as soon as a choice is made.
for (const form of document.querySelectorAll("form[data-submit-on-change]")) {
  form.addEventListener("change", (event) => {
    if (event.target.matches("select, input")) form.requestSubmit();
  });
  form.addEventListener("submit", () => {
    for (const field of form.elements) if (!field.value) field.disabled = true; // short addresses
    setTimeout(() => { for (const field of form.elements) field.disabled = false; });
  });
}

// A picture that is chosen, or dropped anywhere on the page, is searched for at once.
const upload = document.querySelector("form[data-drop]");
if (upload) {
  const field = upload.querySelector("input[type=file]");
  const show = (on) => upload.classList.toggle("dropping", on);
  field.addEventListener("change", () => { if (field.files.length) upload.requestSubmit(); });
  addEventListener("dragover", (event) => {
    if (event.dataTransfer.types.includes("Files")) { event.preventDefault(); show(true); }
  });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) show(false); });
  addEventListener("drop", (event) => {
    show(false);
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    field.files = event.dataTransfer.files;
    upload.requestSubmit();
  });
}

async function pageAt(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address}: ${answer.status}`);
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

// A list that goes on while one scrolls: the next page's items are put at its end.
const endless = document.querySelector("[data-endless]");
let next = document.querySelector("a[rel=next]");
if (endless && next) {
  let busy = false;
  const more = async () => {
    if (busy || !next) return;
    busy = true;
    try {
      const page = await pageAt(next.href);
      endless.append(...(page.querySelector("[data-endless]")?.children ?? []));
      const following = page.querySelector("a[rel=next]");
      if (following) next.href = following.href;
      else { next.parentElement.remove(); next = null; }
    } catch {
      next.textContent = "More images could not be loaded. Try again";
      return;
    } finally {
      busy = false;
    }
    if (next && next.getBoundingClientRect().top < innerHeight + 800) more();
  };
  new IntersectionObserver((seen) => { if (seen.some((one) => one.isIntersecting)) more(); },
    { rootMargin: "800px" }).observe(next.parentElement);
}

// Parts that take a moment to find out.
for (const part of document.querySelectorAll("[data-load]")) {
  pageAt(part.dataset.load).then((page) => {
    const found = page.querySelector("#part");
    if (found) part.replaceChildren(...found.childNodes);
  }).catch(() => {});
}

// Commands are copied by one click.
for (const command of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) break;
  const text = command.textContent, button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  command.append(button);
}

// Only what has changed is replaced, and never where the keyboard's focus is.
function replaceChanged(whole, parts) {
  for (const extra of [...whole.children].slice(parts.length)) extra.remove();
  parts.forEach((part, at) => {
    const old = whole.children[at];
    if (!old) whole.append(part);
    else if (old.outerHTML !== part.outerHTML && !old.contains(document.activeElement)) old.replaceWith(part);
  });
}

// What goes on just now is asked for again and again.
const live = document.querySelector("[data-live]");
if (live) {
  const renew = async () => {
    if (!document.hidden) {
      try {
        const found = (await pageAt(live.dataset.live)).querySelector("[data-live]");
        if (!found) { location.reload(); return; } // nothing goes on any more
        replaceChanged(live, [...found.children]);
        live.classList.remove("lost");
        if (!found.hasAttribute("data-running")) { setTimeout(renew, 10000); return; }
      } catch { live.classList.add("lost"); }
    }
    setTimeout(renew, 2000);
  };
  setTimeout(renew, 2000);
}
