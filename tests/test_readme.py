import re
from pathlib import Path

from configs import cpu
from shakegpt_jax.config import Config

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_config_table_lists_every_field_with_its_values():
    rows = re.findall(r"^\| `(\w+\.\w+)` \| (\S*) \| (\S*) \|", README, re.MULTILINE)
    shown = [(name, default, cpu_value) for name, default, cpu_value in rows]
    defaults, cpu_values = Config().to_dict(), cpu.get_config().to_dict()
    expected = [
        (
            f"{section}.{name}",
            f"`{value}`" if value != "" else '`""`',
            f"`{cpu_values[section][name]}`" if cpu_values[section][name] != value else "",
        )
        for section, values in defaults.items()
        for name, value in values.items()
    ]
    assert shown == expected
