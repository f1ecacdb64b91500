"""Write the pictures of the hook's page that docs/hook.md shows: `make screenshots`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from hook_page import PASSWORD, Fleet, example, served  # noqa: E402

IMAGES = TESTS.parents[2] / "docs" / "images"


def main() -> None:
    program = shutil.which("chromium")
    if program is None:
        sys.exit("Debian's chromium is missing: make lab-tools installs it")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder))
        plan = f"/runs/{example(fleet)['waiting']}"
        with served(fleet) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
            for name, path, size, scale, scheme in (
                ("hook-fleet", "/", (1280, 800), 1, "light"),
                ("hook-plan", plan, (390, 844), 2, "dark"),
            ):
                context = browser.new_context(
                    viewport={"width": size[0], "height": size[1]},
                    device_scale_factor=scale,
                    color_scheme=scheme,  # type: ignore[arg-type]
                    reduced_motion="reduce",
                )
                page = context.new_page()
                page.goto(f"{address}/login?next={path}")
                page.get_by_label("Name").fill("otto")
                page.get_by_label("Password").fill(PASSWORD)
                page.get_by_role("button", name="Log in").click()
                page.wait_for_url(address + path)
                page.screenshot(path=IMAGES / f"{name}.png")
            browser.close()
        fleet.close()


if __name__ == "__main__":
    main()
