"""What people drew on images: masks (DICOM SEG and RTSTRUCT, NIfTI, PNG) and boxes (CSV, COCO, VOC), in one form."""
