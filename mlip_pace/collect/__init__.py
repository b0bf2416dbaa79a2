"""From DFT files to audited structures."""
