// Work for the screen: once a frame at most, and less often where it is costly, so that typing and scrolling stay smooth.

const CHEAP_MS = 6;
const REST = 4;

/** `draw` once in a coming frame, however often the result is called; `now()` does it at once. */
export function perFrame(draw) {
  let isAsked = false;
  const run = () => {
    isAsked = false;
    const start = performance.now();
    draw();
    lastMs = performance.now() - start;
  };
  let lastMs = 0;
  const ask = () => {
    if (isAsked) return;
    isAsked = true;
    const frame = () => requestAnimationFrame(() => isAsked && run());
    if (lastMs > CHEAP_MS) setTimeout(frame, REST * lastMs);
    else frame();
  };
  return { ask, now: run };
}

const NEAR_PX = 64;

/** Keeps the end of `box` in view while it grows, until somebody scrolls away; `button` leads back. */
export class Follower {
  isFollowing = true;

  constructor(box, button) {
    this.box = box;
    this.button = button;
    box.addEventListener("scroll", () => this.#look(), { passive: true });
    box.addEventListener("wheel", (event) => event.deltaY < 0 && this.#leave(), { passive: true });
    button.addEventListener("click", () => this.follow());
    addEventListener("resize", () => this.grown());
    button.hidden = true;
  }

  follow() {
    this.isFollowing = true;
    this.grown();
  }

  grown() {
    if (this.isFollowing) this.box.scrollTop = this.box.scrollHeight;
    this.button.hidden = this.isFollowing;
  }

  #look() {
    const left = this.box.scrollHeight - this.box.clientHeight - this.box.scrollTop;
    if (left < NEAR_PX) this.isFollowing = true;
    else if (this.#top > this.box.scrollTop) this.isFollowing = false;
    this.#top = this.box.scrollTop;
    this.button.hidden = this.isFollowing || left < NEAR_PX;
  }

  #top = 0;

  #leave() {
    if (this.box.scrollHeight > this.box.clientHeight) this.isFollowing = false;
  }
}
