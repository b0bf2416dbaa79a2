"""Draw docs/report.png, the top of a report, in a headless chromium.

    make demo
    .venv/bin/python docs/report_picture.py out/report.html

Needs Debian's packages chromium, chromium-driver and fonts-dejavu-core, and what `make .venv/dev` installs (selenium, Pillow).
"""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver

PICTURE = Path(__file__).with_name("report.png")
WIDTH, HEIGHT = 1240, 1080  # pixels of the window: the verdict, what to mind, the errors
COLOURS = 128  # enough for lines and text, and a third of the bytes


def shot(report: Path) -> Image.Image:
    """The top of the page, as a window of this size shows it."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    with tempfile.TemporaryDirectory() as profile:
        for flag in ("headless", "no-sandbox", "disable-gpu", "hide-scrollbars", f"user-data-dir={profile}"):
            options.add_argument("--" + flag)
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
        try:
            size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.get(report.resolve().as_uri())
            return Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        finally:
            browser.quit()


if __name__ == "__main__":
    shot(Path(sys.argv[1])).quantize(COLOURS).save(PICTURE, optimize=True)
