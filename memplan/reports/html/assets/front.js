// The Pareto front: memory against trained blocks, and the plan of the chosen point.

let points = null;
let chosenPlan = 0;

function frontSection() {
  const front = record.front;
  if (!front || !byId("front-points")) return;
  document.querySelectorAll("button[data-plan]").forEach((button) => {
    button.addEventListener("click", () => choosePlan(Number(button.dataset.plan)));
  });
  choosePlan(0);
  later(byId("front-points"), () => {
    points = picture(byId("front-points"), drawFront);
    points.chart.on("click", (event) => {
      if (event.componentType === "series") choosePlan(event.data.plan);
    });
    points.draw();
  });
}

function choosePlan(plan) {
  chosenPlan = plan;
  document
    .querySelectorAll("article[data-plan]")
    .forEach((shown) => (shown.hidden = Number(shown.dataset.plan) !== plan));
  document
    .querySelectorAll("button[data-plan]")
    .forEach((button) => button.setAttribute("aria-pressed", String(Number(button.dataset.plan) === plan)));
  document
    .querySelectorAll("tr[data-plan]")
    .forEach((row) => row.classList.toggle("chosen", Number(row.dataset.plan) === plan));
  points?.draw();
}

function drawFront(chart) {
  const front = record.front;
  const most = Math.max(front.stock_bytes, ...front.bytes);
  const series = [
    ["exact gradients", "circle", "run-1", false],
    ["approximate in some blocks", "triangle", "budget", true],
  ];
  chart.setOption(
    {
      animation: false,
      grid: { left: 54, right: 24, top: 28, bottom: 46 },
      tooltip: tooltip((given) => pointTold(given.data.plan), "item"),
      xAxis: bytesAxis(most * 1.02, {
        room: chart.getWidth() - 78,
        name: `${front.of} of one step`,
        nameLocation: "middle",
        nameGap: 30,
        nameTextStyle: textStyle(),
      }),
      yAxis: {
        type: "value",
        name: "trained blocks (k)",
        minInterval: 1,
        min: 0,
        nameTextStyle: { ...textStyle(), align: "left" },
        axisLabel: textStyle(),
        splitLine: { lineStyle: { color: colour("line") } },
      },
      series: series.map(([name, symbol, own, approximate], place) => ({
        name,
        type: "scatter",
        symbol,
        symbolSize: (_, { data }) => (data.plan === chosenPlan ? 20 : 13),
        animation: false,
        cursor: "pointer",
        data: front.bytes
          .map((bytes, plan) => ({
            value: [bytes, front.k[plan]],
            plan,
            itemStyle: {
              color: colour(own),
              borderColor: plan === chosenPlan ? colour("ink") : colour("card"),
              borderWidth: plan === chosenPlan ? 2.5 : 1,
            },
          }))
          .filter(({ plan }) => front.approximations[plan] > 0 === approximate),
        markLine: place
          ? undefined
          : {
              symbol: "none",
              silent: true,
              animation: false,
              data: [{ xAxis: front.stock_bytes }],
              lineStyle: { color: colour("muted"), type: [6, 4] },
              label: { ...textStyle(), formatter: `stock full ${size(front.stock_bytes)}`, position: "insideEndTop" },
            },
      })),
    },
    { notMerge: true },
  );
}

function pointTold(plan) {
  const front = record.front;
  const approximate = front.approximations[plan];
  return make(
    "div",
    { class: "tip" },
    make("strong", {}, `Plan ${plan + 1}: `),
    bytesElement(front.bytes[plan]),
    make(
      "p",
      {},
      `k ${front.k[plan]}, ${front.told[plan]}FLOPs, ${approximate ? `approximate in ${approximate} ${approximate === 1 ? "block" : "blocks"}` : "exact gradients"}`,
    ),
  );
}
