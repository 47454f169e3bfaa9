// Bars of bytes: a row for each thing, a pane for each quantity, and in it a bar of each series.

const ROWS_SHOWN = 24;
const BAR_ROOM = 26;

// Draws ``rows``, which have a name; ``series`` say how they are called, coloured and what ``bytes`` a row has in a
// pane; ``told`` makes the tooltip of a row.
function barsDrawn(chart, { rows, panes, series, cursor, told }) {
  const element = chart.getDom();
  const narrow = element.clientWidth < 640;
  const visible = Math.min(rows.length, ROWS_SHOWN);
  const height = Math.max(visible * BAR_ROOM, 60);
  const left = narrow ? 110 : 190;
  const scrolls = rows.length > ROWS_SHOWN;
  const room = element.clientWidth - left - 20 - (scrolls ? 28 : 0);
  const stacked = narrow ? panes.length : 1;
  element.dataset.part = scrolls ? `The first ${visible} of ${grouped(String(rows.length))} bars` : "";
  element.style.height = `${stacked * (height + 56)}px`;
  if (chart.getHeight() !== element.clientHeight) chart.resize();
  const width = narrow ? room : (room - 40 * (panes.length - 1)) / panes.length;
  const grids = panes.map((_, place) => ({
    left: narrow ? left : left + place * (width + 40),
    top: narrow ? 26 + place * (height + 56) : 26,
    width,
    height,
  }));
  const most = (kind) => Math.max(1, ...rows.flatMap((row) => series.map(({ bytes }) => bytes(row, kind))));
  const label = {
    ...textStyle(),
    color: colour("ink"),
    width: left - 14,
    overflow: "truncate",
    formatter: (name) => elided(rows[Number(name)]?.name ?? "", narrow ? 16 : 28),
  };
  const each = [...panes.keys()];
  chart.setOption(
    {
      animation: false,
      grid: grids,
      tooltip: tooltip((given) => told(rows[given[0].dataIndex]), "axis"),
      axisPointer: { link: [{ yAxisIndex: "all" }] },
      xAxis: panes.map((kind, place) =>
        bytesAxis(most(kind), {
          room: width,
          gridIndex: place,
          name: kind,
          nameLocation: "middle",
          nameGap: -height - 16,
          nameTextStyle: { ...textStyle(), color: colour("ink"), fontWeight: 600 },
        }),
      ),
      yAxis: panes.map((_, place) => ({
        type: "category",
        gridIndex: place,
        inverse: true,
        data: [...rows.keys()].map(String),
        axisLabel: place && !narrow ? { show: false } : { ...label, interval: 0 },
        axisTick: { show: false },
        axisLine: { lineStyle: { color: colour("line") } },
        triggerEvent: false,
      })),
      dataZoom: scrolls
        ? [
            {
              type: "slider",
              yAxisIndex: each,
              right: 4,
              width: 14,
              startValue: 0,
              endValue: visible - 1,
              zoomLock: true,
              brushSelect: false,
              showDetail: false,
              showDataShadow: false,
              fillerColor: colour("shade"),
              borderColor: colour("line"),
              handleSize: 0,
            },
            {
              type: "inside",
              yAxisIndex: each,
              zoomLock: true,
              zoomOnMouseWheel: false,
              moveOnMouseWheel: "ctrl",
              moveOnMouseMove: false,
            },
          ]
        : [],
      series: panes.flatMap((kind, place) =>
        series.map(({ name, colour: own, bytes }) => ({
          type: "bar",
          name,
          xAxisIndex: place,
          yAxisIndex: place,
          animation: false,
          barGap: "10%",
          barCategoryGap: "28%",
          itemStyle: { color: colour(own), borderRadius: [0, 2, 2, 0] },
          emphasis: { disabled: true },
          data: rows.map((row) => bytes(row, kind)),
          cursor,
        })),
      ),
    },
    { notMerge: true },
  );
}

// The place of the row that an event of the pointer is in.
function barAt(chart, event) {
  return Math.round(chart.convertFromPixel({ yAxisIndex: 0 }, event.offsetY));
}
