// How pasted text and files become documents.

const TEXT_FIELDS = ["text", "content", "page_content", "passage", "document", "body"];
const FORMATS = {
  lines: { one: "one per line", parse: (text) => parts(text, "\n") },
  blocks: { one: "blank-line blocks", parse: (text) => parts(text, /\n[ \t]*\n/) },
  json: { one: "JSON array", parse: parseArray },
  jsonl: { one: "JSON Lines, an entry per line", parse: parseLines },
  whole: { one: "the whole text", parse: (text) => [text.trim()].filter(Boolean) },
};

function parts(text, separator) {
  return text.split(separator).map((part) => part.trim()).filter(Boolean);
}

// The text of an entry of JSON: a string, or an object with a text, before which its title becomes a line.
function entryText(entry, place) {
  if (typeof entry === "string") return entry.trim();
  const field = TEXT_FIELDS.find((name) => typeof entry?.[name] === "string");
  if (!field) throw new Error(`Entry ${place + 1} has no text: make it a string, or an object with one of ${TEXT_FIELDS.join(", ")}.`);
  const title = typeof entry.title === "string" ? entry.title.trim() : "";
  return [title, entry[field].trim()].filter(Boolean).join("\n");
}

function parseArray(text) {
  let value;
  try { value = JSON.parse(text); } catch (error) { throw new Error(`This is not JSON: ${error.message}`); }
  const entries = Array.isArray(value) ? value : value?.documents;
  if (!Array.isArray(entries)) throw new Error("The JSON is not an array: give [\"a document\", …], or objects with a text.");
  return entries.map(entryText).filter(Boolean);
}

function parseLines(text) {
  return parts(text, "\n").map((line, place) => {
    try { return JSON.parse(line); } catch (error) { throw new Error(`Line ${place + 1} is not JSON: ${error.message}`); }
  }).map(entryText).filter(Boolean);
}

function works(parse, text) {
  try { return parse(text).length > 0; } catch { return false; }
}

// The format of a text whose format nobody named. A blank line in a list of lines must not merge the lines around it, so
// blank lines separate documents only where they make at least three blocks, of at most eight lines on average.
function recognise(text) {
  const start = text.trimStart()[0];
  if ((start === "[" || start === "{") && works(parseArray, text)) return "json";
  if ((start === "{" || start === '"') && works(parseLines, text)) return "jsonl";
  const lines = parts(text, "\n").length;
  const blocks = FORMATS.blocks.parse(text).length;
  return blocks < lines && blocks > 2 && lines <= 8 * blocks ? "blocks" : "lines";
}

function split(text, format = "auto") {
  return FORMATS[format === "auto" ? recognise(text) : format].parse(text);
}

// Rows of a CSV file (RFC 4180): fields may be quoted, and hold separators, line breaks and doubled quotes.
function parseRows(text, separator) {
  const rows = [[]];
  const field = new RegExp(`("(?:[^"]|"")*"|[^${separator}\\r\\n]*)(${separator}|\\r?\\n|$)`, "gy");
  for (const [all, value, end] of text.matchAll(field)) {
    if (!all && rows.at(-1).length === 0) break;
    rows.at(-1).push(value.startsWith('"') ? value.slice(1, -1).replaceAll('""', '"') : value);
    if (end === "") break;
    if (end !== separator) rows.push([]);
  }
  return rows.filter((row) => row.some((value) => value.trim()));
}

// Documents of a CSV file with a header: the column that is named like a text, or the one with the longest fields.
function parseTable(text) {
  const heading = text.slice(0, text.search(/\r?\n|$/));
  const separator = [",", ";", "\t"].reduce((best, each) => (heading.split(each).length > heading.split(best).length ? each : best));
  const [names, ...rows] = parseRows(text.replace(/^\uFEFF/, ""), separator);
  if (rows.length === 0) throw new Error("the table has no rows below its header");
  const wanted = names.map((name) => name.trim().toLowerCase());
  const length = (place) => rows.reduce((sum, row) => sum + (row[place] ?? "").length, 0);
  const longest = names.map((_, place) => place).reduce((best, place) => (length(place) > length(best) ? place : best));
  const named = TEXT_FIELDS.map((name) => wanted.indexOf(name)).find((place) => place >= 0);
  const column = named ?? longest;
  return { column: names[column].trim(), documents: rows.map((row) => (row[column] ?? "").trim()).filter(Boolean) };
}

// What the text area shall hold for these files, and what to say about it.
async function readFiles(files) {
  const documents = [];
  const said = [];
  for (const file of files) {
    const text = await file.text();
    const kind = file.name.split(".").pop().toLowerCase();
    try {
      if (text.includes("\0")) throw new Error("it is no text");
      if (kind === "csv" || kind === "tsv") {
        const table = parseTable(text);
        documents.push(...table.documents);
        said.push(`${file.name}, column “${table.column}”`);
      } else if (kind === "json") {
        documents.push(...parseArray(text));
        said.push(file.name);
      } else if (kind === "jsonl" || kind === "ndjson") {
        documents.push(...parseLines(text));
        said.push(file.name);
      } else if (files.length === 1) {
        return { text, said: file.name };
      } else {
        documents.push(...FORMATS.whole.parse(text));
        said.push(`${file.name} as one document`);
      }
    } catch (error) { throw new Error(`${file.name}: ${error.message}`); }
  }
  return { text: JSON.stringify(documents, null, 1), said: said.join("; ") };
}
