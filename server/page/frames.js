// Work for the screen: thirty times a second at most, and less often where it is costly, so that typing and scrolling
// stay smooth.

const LEAST_REST_MS = 20;
const REST = 4;

/** `draw` in a coming frame, once however often the result is called; `now()` does it at once. */
export function perFrame(draw) {
  let isAsked = false;
  let lastMs = 0;
  const run = () => {
    isAsked = false;
    const start = performance.now();
    draw();
    lastMs = performance.now() - start;
  };
  const ask = () => {
    if (isAsked) return;
    isAsked = true;
    setTimeout(() => requestAnimationFrame(() => isAsked && run()), Math.max(LEAST_REST_MS, REST * lastMs));
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
