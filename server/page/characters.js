// The API counts characters; the browser's strings count UTF-16 units, of which an emoji has two.

/** For each of `places`, in characters and ascending, where that is in `text`, in units. */
export function unitsOf(text, places) {
  const found = [];
  let unit = 0;
  let character = 0;
  for (const place of places) {
    while (character < place && unit < text.length) {
      unit += text.codePointAt(unit) > 0xffff ? 2 : 1;
      character += 1;
    }
    found.push(unit);
  }
  return found;
}

/** The text in pieces: `[piece, entity]`, where the entity is null between entities. Of two that overlap the first stays. */
export function pieces(text, entities) {
  const sorted = [...entities].sort((a, b) => a.start - b.start || b.end - a.end);
  const kept = [];
  for (const entity of sorted) {
    if (entity.start >= (kept.at(-1)?.end ?? 0)) kept.push(entity);
  }
  const units = unitsOf(text, kept.flatMap(({ start, end }) => [start, end]));
  const found = [];
  let last = 0;
  kept.forEach((entity, i) => {
    const [start, end] = units.slice(2 * i, 2 * i + 2);
    if (start > last) found.push([text.slice(last, start), null]);
    found.push([text.slice(start, end), entity]);
    last = end;
  });
  if (last < text.length) found.push([text.slice(last), null]);
  return found;
}
