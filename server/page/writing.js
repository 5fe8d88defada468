// What the tabs share whose models write: their settings, and results that grow.

import { generate } from "./generation.js";
import { Outputs } from "./outputs.js";
import { GENERATION } from "./settings_fields.js";
import { Workbench } from "./workbench.js";

export class Writing extends Workbench {
  static settings = GENERATION;
  /** What the first side has written last. */
  written = null;

  /** What stands before each result. */
  prompt() {
    return "";
  }

  async run(side, output, signal, say) {
    const { path, body } = this.request(side);
    const outputs = new Outputs(output, this.prompt(body), body, say);
    if (side === this.sides.active[0]) this.written = outputs;
    try {
      await generate(path, body, {
        signal,
        onToken: (one, event) => outputs.add(one, event),
        onNotice: (text) => outputs.tell(text),
      });
    } finally {
      outputs.end();
    }
    return "";
  }
}
