// The API counts characters; the browser's strings count UTF-16 units, of which an emoji has two.

/** The text in pieces: `[piece, entity]`, where the entity is null between entities. Of two that overlap the first stays. */
export function pieces(text, entities) {
  const characters = [...text];
  const found = [];
  let last = 0;
  const take = (end, entity) => {
    if (end > last) found.push([characters.slice(last, end).join(""), entity]);
    last = end;
  };
  for (const entity of [...entities].sort((a, b) => a.start - b.start || b.end - a.end)) {
    if (entity.start < last) continue;
    take(entity.start, null);
    take(entity.end, entity);
  }
  take(characters.length, null);
  return found;
}
