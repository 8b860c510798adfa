// Runs PixelMed's DicomSRValidator over several files in one JVM: its own main takes one, and starting costs ten seconds.
import com.pixelmed.validate.DicomSRValidator;

public class ValidateReports {
    public static void main(String[] files) throws Exception {
        DicomSRValidator validator = new DicomSRValidator();
        for (String file : files) {
            System.out.println("=== " + file);
            System.out.println(validator.validate(file));
        }
    }
}
