// The description of the API: what openapi.json holds, as tables.

import { $, element } from "./common.js";

/** @typedef {{[limit: string]: unknown, $ref?: string, anyOf?: Schema[], type?: string, items?: Schema, default?: unknown}} Schema */
/** @typedef {{content: Record<string, {schema?: Schema}>}} Content */
/** @typedef {{summary: string, requestBody?: Content, responses: Record<string, Content>}} Operation */
/** @typedef {{description?: string, properties: Record<string, Schema>, required: string[]}} Struct */

/** @type {{paths: Record<string, Record<string, Operation>>, components: {schemas: Record<string, Struct>}}} */
const { paths, components } = JSON.parse($("data").textContent ?? "");

/** Returns what a value may be, in words. @param {Schema} schema @returns {string} */
function inWords({ $ref, anyOf, type, items, default: _, ...limits }) {
  if ($ref) return $ref.replace(/.*\//, "");
  if (anyOf) return anyOf.map(inWords).join(" or ");
  const about = Object.entries(limits).map(([name, limit]) => `${name} ${JSON.stringify(limit)}`).join(", ");
  return [items ? `array of (${inWords(items)})` : type, about && `(${about})`].filter(Boolean).join(" ") || "any";
}

/** @param {Content} content */
const kinds = ({ content }) =>
  Object.entries(content).map(([media, { schema }]) => (schema ? `${inWords(schema)} (${media})` : media)).join(" or ");

/** @param {string[]} heads @param {string[][]} rows the first cell is code */
function table(heads, rows) {
  return element("table", "", "",
    element("tr", "", "", ...heads.map((head) => element("th", "", head))),
    ...rows.map(([first, ...others]) => element("tr", "", "",
      element("td", "", "", element("code", "", first)), ...others.map((text) => element("td", "", text)))));
}

const routes = Object.entries(paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, operation]) => [
  `${method.toUpperCase()} ${path}`, operation.summary,
  operation.requestBody ? kinds(operation.requestBody) : "", kinds(operation.responses["200"])]));
$("routes").append(table(["route", "does", "body", "answer"], routes));

for (const [name, { description = "", properties, required }] of Object.entries(components.schemas)) {
  const fields = Object.entries(properties).map(([field, schema]) => [
    field, inWords(schema), required.includes(field) ? "required" : JSON.stringify(schema.default ?? null)]);
  $("schemas").append(element("article", "card", "",
    element("h2", "", name), element("p", "", description), table(["field", "value", "default"], fields)));
}
