// Numbers for people; and how fast something grows.

const UNITS = ["bytes", "kB", "MB", "GB", "TB", "PB"];

// As Tahoe's pages write sizes: powers of 1000.
export function sizeText(bytes) {
  let unit = 0;
  let value = bytes;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  if (unit === 0) {
    return bytes === 1 ? "1 byte" : `${Math.round(bytes)} bytes`;
  }
  return `${value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0)} ${UNITS[unit]}`;
}

export function durationText(seconds) {
  const s = Math.max(1, Math.round(seconds));
  if (s < 60) {
    return `${s} s`;
  }
  if (s < 3600) {
    return `${Math.floor(s / 60)} min ${s % 60} s`;
  }
  const hours = Math.floor(s / 3600);
  return hours < 48 ? `${hours} h ${Math.floor((s % 3600) / 60)} min` : `${Math.floor(hours / 24)} days`;
}

export function percentText(part, whole) {
  return `${whole ? Math.floor((100 * part) / whole) : 100}%`;
}

const RATE_WINDOW = 10_000; // milliseconds

// Bytes a second over the last ten seconds.
export class Rate {
  constructor() {
    this.reset();
  }

  reset() {
    this._points = [];
  }

  add(bytes, now) {
    this._points.push([now, bytes]);
    while (this._points.length > 2 && now - this._points[1][0] >= RATE_WINDOW) {
      this._points.shift();
    }
  }

  // null while nothing can be said.
  get perSecond() {
    if (this._points.length < 2) {
      return null;
    }
    const [began, first] = this._points[0];
    const [now, last] = this._points[this._points.length - 1];
    return now - began < 500 ? null : (1000 * (last - first)) / (now - began);
  }
}
