// What is still to be drawn: one picture at a time, so that the page answers in between.

// The elements in the order of the page, and what draws each; those that are drawn before anybody comes near them.
const waiting = new Map();
const unasked = new Set();
const urgent = new Set();
// How the next picture will be drawn: "soon", "idly" by the callback ``idle``, or not.
let scheduled = "";
let idle = 0;

const near = new IntersectionObserver(
  (seen) => {
    for (const { target, isIntersecting } of seen) {
      if (isIntersecting && waiting.has(target)) urgent.add(target);
      else urgent.delete(target);
    }
    if (urgent.size) schedule();
  },
  { rootMargin: "200px" },
);

// Draws an element when it is near the view, and else when the browser has nothing to do, unless ``unseen`` is false.
function later(element, act, { unseen = true } = {}) {
  waiting.set(element, act);
  if (unseen) unasked.add(element);
  near.observe(element);
}

function firstOf(elements) {
  return elements.values().next().value;
}

function drawNext() {
  scheduled = "";
  const next = firstOf(urgent) ?? firstOf(unasked);
  if (next) drawNow(next);
  if (!unasked.size) document.documentElement.dataset.drawn = "";
  if (urgent.size || unasked.size) schedule();
}

function schedule() {
  const how = urgent.size || !window.requestIdleCallback ? "soon" : "idly";
  if (scheduled === how || scheduled === "soon") return;
  if (scheduled === "idly") cancelIdleCallback(idle);
  scheduled = how;
  if (how === "soon") setTimeout(drawNext);
  else idle = requestIdleCallback(drawNext, { timeout: 200 });
}

function drawNow(element) {
  const act = waiting.get(element);
  for (const all of [waiting, unasked, urgent]) all.delete(element);
  near.unobserve(element);
  act();
}

// Paper has no view that anything could be near.
function drawRest() {
  for (const element of [...waiting.keys()]) drawNow(element);
}
