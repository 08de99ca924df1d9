"use strict";
// Arrays as text.

/** Returns the numbers of a little-endian array in base64. */
function decodeArray(text, Type) {
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return new Type(bytes.buffer);
}
