//! Draws charts side by side in one SVG, for the documents.

use super::AnyError;
use super::figures::thousands;
use plotters::prelude::{
    BLACK, ChartBuilder, Circle, Color, DrawingArea, DrawingAreaErrorKind, DrawingBackend, IntoDrawingArea, LineSeries,
    PathElement, RGBColor, SVGBackend, SeriesLabelPosition, TRANSPARENT, WHITE,
};

/// Width and height of one chart in pixels.
const CHART: (u32, u32) = (420, 320);
static COLOURS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(255, 127, 14),
    RGBColor(148, 103, 189),
    RGBColor(90, 90, 90),
];

/// The scale of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly divided, from 0.
    Linear,
    /// In powers of ten; values must be above 0.
    Log,
}

/// An axis of a chart.
#[derive(Clone, Debug)]
pub struct Axis {
    /// The quantity that it shows, with the unit.
    pub name: String,
    /// Linear or logarithmic division of the axis.
    pub scale: Scale,
}

/// A line in a chart.
#[derive(Clone, Debug)]
pub struct Series {
    /// Name of the line, shown in the chart.
    pub name: String,
    /// Its points, in order of x.
    pub points: Vec<(f64, f64)>,
}

/// A chart with its axes and lines.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Title of the chart, drawn as its caption.
    pub title: String,
    /// The axis from left to right.
    pub x: Axis,
    /// The axis from below to above.
    pub y: Axis,
    /// Lines of the chart, each with a name.
    pub series: Vec<Series>,
}

impl Axis {
    /// Returns the position of a value.
    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => value,
            Scale::Log => value.log10(),
        }
    }

    /// Returns the ends of the axis, so that all values are on it. A linear axis goes `beyond` times as far.
    fn range(&self, values: impl Iterator<Item = f64> + Clone, beyond: f64) -> std::ops::Range<f64> {
        let most = values.clone().map(|value| self.place(value)).fold(f64::MIN, f64::max);
        match self.scale {
            Scale::Linear => 0.0..most * beyond,
            Scale::Log => {
                let least = values.map(|value| self.place(value)).fold(f64::MAX, f64::min).floor();
                least..most.ceil().max(least + 1.0)
            }
        }
    }

    /// Returns the text at a tick. It is empty between two powers of ten.
    fn label(&self, place: f64) -> String {
        let value = match self.scale {
            Scale::Linear => place,
            Scale::Log if (place - place.round()).abs() > 1e-6 => return String::new(),
            Scale::Log => 10f64.powf(place.round()),
        };
        if value < 10.0 && value.fract() > 1e-9 { format!("{value:.1}") } else { thousands(value) }
    }
}

/// Returns the charts as the text of an SVG file.
///
/// # Errors
/// The backend fails, which it does not when it writes to memory.
pub fn svg(charts: &[Chart]) -> Result<String, AnyError> {
    let mut text = String::new();
    let width = CHART.0 * charts.len() as u32;
    let area = SVGBackend::with_string(&mut text, (width, CHART.1)).into_drawing_area();
    area.fill(&WHITE).map_err(describe_error)?;
    for (chart, area) in charts.iter().zip(area.split_evenly((1, charts.len()))) {
        draw(chart, &area).map_err(describe_error)?;
    }
    area.present().map_err(describe_error)?;
    drop(area);
    Ok(text)
}

fn describe_error(error: impl std::fmt::Display) -> AnyError {
    format!("the plot: {error}").into()
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw<'a>(
    chart: &Chart,
    area: &Area<'a>,
) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>> {
    let points = || chart.series.iter().flat_map(|series| series.points.iter());
    let x_range = chart.x.range(points().map(|(x, _)| *x), 1.1);
    // Above the lines there is room for their names.
    let y_range = chart.y.range(points().map(|(_, y)| *y), 1.5);
    let mut drawn = ChartBuilder::on(area)
        .caption(&chart.title, ("sans-serif", 16))
        .margin(10)
        .margin_right(36)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(x_range, y_range)?;
    let (x_label, y_label) = (|place: &f64| chart.x.label(*place), |place: &f64| chart.y.label(*place));
    drawn
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .x_labels(8)
        .y_labels(6)
        .x_desc(&chart.x.name)
        .y_desc(&chart.y.name)
        .axis_desc_style(("sans-serif", 13))
        .x_label_formatter(&x_label)
        .y_label_formatter(&y_label)
        .draw()?;
    for (series, &colour) in chart.series.iter().zip(COLOURS.iter().cycle()) {
        let places = series.points.iter().map(|(x, y)| (chart.x.place(*x), chart.y.place(*y)));
        drawn
            .draw_series(LineSeries::new(places.clone(), colour.stroke_width(2)))?
            .label(&series.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        drawn.draw_series(places.map(|place| Circle::new(place, 3, colour.filled())))?;
    }
    drawn
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 12))
        .draw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_stand_at_powers_of_ten_and_every_value_is_on_its_axis() {
        let log = Axis { name: "n".into(), scale: Scale::Log };
        assert_eq!((log.label(3.0), log.label(3.5), log.label(-1.0)), ("1,000".into(), String::new(), "0.1".into()));
        assert_eq!(log.range([20.0, 5_000.0].into_iter(), 1.0), 1.0..4.0);
        let linear = Axis { name: "n".into(), scale: Scale::Linear };
        assert!(linear.range([20.0, 50.0].into_iter(), 1.1).contains(&50.0) && linear.label(2.5) == "2.5");
    }

    #[test]
    fn each_chart_has_its_title_and_each_series_a_line_with_its_points() {
        let axis = |scale| Axis { name: "things".into(), scale };
        let series = Series { name: "a".into(), points: vec![(10.0, 1.0), (100.0, 2.0)] };
        let chart = Chart { title: "One".into(), x: axis(Scale::Log), y: axis(Scale::Linear), series: vec![series] };
        let text = svg(&[chart.clone(), Chart { title: "Two".into(), ..chart }]).unwrap();
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"));
        let count = |what: &str| text.matches(what).count();
        assert_eq!((count("One"), count("Two"), count("<circle")), (1, 1, 4));
    }
}
