// The record behind the page, decoded: texts for places, sums of allocations, sizes as memplan writes them.

const record = JSON.parse(document.getElementById("memplan-data").textContent);
const KINDS = record.kinds ?? [];
const STATES = record.states ?? {};
const BYTES_PER_UNIT = { B: 1, KB: 1e3, MB: 1e6 };
const runs = (record.runs ?? []).map(decoded);

function textAt(place) {
  return record.texts[place];
}

// A run with its bytes at each moment, which are summed up when they are asked for first: most runs are never shown.
function decoded(run) {
  const count = run.phases.reduce((sum, [, moments]) => sum + moments, 0);
  let series;
  const known = () => (series ??= withTotal(run.timeline ?? summed(run.allocations, count)));
  const decoded = { ...run, count };
  for (const kind of [...KINDS, "total"]) Object.defineProperty(decoded, kind, { get: () => known()[kind] });
  return decoded;
}

function withTotal(series) {
  const total = series.resident.map((bytes, moment) => bytes + series.saved[moment] + series.temp[moment]);
  return { ...series, total };
}

// Bytes of each kind at each moment, from what is allocated and how long it lives.
function summed(allocations, count) {
  const changes = [0, 1, 2].map(() => new Float64Array(count + 1));
  allocations.bytes.forEach((bytes, index) => {
    const change = changes[allocations.kind[index]];
    change[allocations.first[index]] += bytes;
    change[allocations.last[index] + 1] -= bytes;
  });
  const series = changes.map((change) => {
    let alive = 0;
    return Array.from(change.subarray(0, count), (step) => (alive += step));
  });
  return { resident: series[0], saved: series[1], temp: series[2] };
}

function phaseAt(run, moment) {
  let end = 0;
  for (const [phase, moments] of run.phases) {
    end += moments;
    if (moment < end) return phase;
  }
  return "";
}

// What is alive at a moment, the largest first.
function aliveAt(run, moment) {
  const all = run.allocations;
  if (!all) return [];
  const alive = [];
  for (let index = 0; index < all.bytes.length; index++) {
    if (all.first[index] <= moment && moment <= all.last[index]) alive.push(index);
  }
  return alive.sort((one, other) => all.bytes[other] - all.bytes[one] || one - other);
}

// A size as memplan writes it: Python rounds what lies exactly between two tenths to the even one, JavaScript up.
function formatBytes(bytes, unit) {
  const value = bytes / BYTES_PER_UNIT[unit];
  if (unit === "B") return `${grouped(String(bytes))} B`;
  const part = value - Math.floor(value);
  const text = part === 0.25 ? (value - 0.05).toFixed(1) : value.toFixed(1);
  return `${grouped(text)} ${unit}`;
}

function grouped(digits) {
  return digits.replace(/^-?\d+/, (whole) => whole.replace(/\B(?=(\d{3})+$)/g, ","));
}

function unitFor(bytes) {
  return ["MB", "KB"].find((unit) => bytes >= BYTES_PER_UNIT[unit]) ?? "B";
}

function size(bytes) {
  return formatBytes(bytes, unitFor(bytes));
}

// A text of at most so many characters: both ends of a layer's path tell most.
function elided(text, most) {
  if (text.length <= most) return text;
  const tail = Math.floor((most - 3) / 2);
  return `${text.slice(0, most - 3 - tail)}...${text.slice(text.length - tail)}`;
}

function layerName(path) {
  return path || "(model)";
}

function stateWords(state) {
  return Object.entries(STATES)
    .filter(([, bit]) => state & bit)
    .map(([name]) => name);
}
